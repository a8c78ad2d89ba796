//! OUTPUT, scratch and replica are apart from the input and from each other, whatever names they
//! are given.
//!
//! URLs of a bucket are compared as they are written: all processes of a pool speak to one
//! endpoint, and a key is a key. Paths are compared as text first, because they mean the same to
//! all processes of a pool, some of which may see what the coordinator does not; then by what they
//! lead to here ([`Territory`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_platform::adapters::territory::{Mounts, Territory, is_link};
use muster_platform::store::BlobUrl;
use muster_protocol::plan::Plan;
use muster_protocol::{Error, Result};

use crate::job::io::{Offer, Places};
use crate::job::overlap;

/// Where a job writes, looked at once for all of its input.
pub(super) struct Ground {
    output: BlobUrl,
    scratch: BlobUrl,
    replica: Option<BlobUrl>,
    here: Arc<Here>,
}

/// What the places lead to on this machine; none for those in a bucket.
#[derive(Default)]
struct Here {
    mounts: Mounts,
    output: Option<Territory>,
    scratch: Option<Territory>,
    replica: Option<Territory>,
}

/// How an input is in the way: the place, as a user knows it, and what else to say of it.
enum Clash {
    Output(String),
    Scratch,
    Replica(String),
}

impl Ground {
    /// Looks at the places, which must be apart from each other.
    ///
    /// # Errors
    /// `Invalid` where they are not, or a path cannot be looked at.
    pub(super) async fn look(places: &Places) -> Result<Self> {
        let Places { output, scratch_root, scratch, replica } = places;
        let ground = Self::of(output, scratch, replica.as_ref()).await?;
        let (here, root) = (ground.here.clone(), scratch_root.file_path());
        let inside = blocking(move || {
            let root = root.map(|root| Territory::of(&root, &here.mounts)).transpose()?;
            Ok(meet(&root, &here.output, Territory::covers))
        });
        if ground.here.is_somewhere() && inside.await? {
            return Err(Error::invalid(format!(
                "OUTPUT {output} lies in scratch ({scratch_root})"
            )));
        }
        if let Some(replica) = replica {
            let here = &ground.here;
            let taken =
                [("scratch lies", scratch, &here.scratch), ("OUTPUT lies", output, &here.output)];
            if let Some((what, taken, _)) = taken
                .into_iter()
                .find(|(_, _, theirs)| meet(&here.replica, theirs, Territory::overlaps))
            {
                return Err(Error::invalid(format!(
                    "--replica {replica} is where {what} already ({taken}); name another place"
                )));
            }
        }
        Ok(ground)
    }

    async fn of(output: &BlobUrl, scratch: &BlobUrl, replica: Option<&BlobUrl>) -> Result<Self> {
        let paths =
            [Some(output), Some(scratch), replica].map(|url| url.and_then(BlobUrl::file_path));
        let here = match paths.iter().all(Option::is_none) {
            true => Here::default(),
            false => blocking(move || Here::look(paths)).await?,
        };
        let (output, scratch, replica) = (output.clone(), scratch.clone(), replica.cloned());
        Ok(Self { output, scratch, replica, here: Arc::new(here) })
    }

    /// Looks again, right before OUTPUT changes: a link may have come since the plan was made, and
    /// what lies behind it is not the job's.
    ///
    /// # Errors
    /// `Invalid`, naming both places.
    pub(super) async fn check_again(plan: &Plan) -> Result<()> {
        let replica = plan.replica.as_deref().map(str::parse::<BlobUrl>).transpose()?;
        let ground =
            Self::of(&plan.output.parse()?, &plan.scratch.parse()?, replica.as_ref()).await?;
        if !ground.here.is_somewhere() {
            return Ok(());
        }
        let urls = plan
            .objects
            .iter()
            .filter(|object| object.owner().is_none())
            .map(|object| object.url.parse());
        ground.check_input(None, urls.collect::<Result<_>>()?).await
    }

    /// An input must not lie where the job writes, and a folder that is read must not hold what the
    /// job writes: the next run over it would read this one's output.
    ///
    /// # Errors
    /// `Invalid`, naming both.
    pub(super) async fn check_input(
        &self,
        folder: Option<&BlobUrl>,
        objects: Vec<BlobUrl>,
    ) -> Result<()> {
        let Self { output, scratch, replica, .. } = self;
        if let Some(folder) = folder {
            if overlap(folder, output) {
                return Err(self.refuse(folder, Clash::Output(String::new())));
            }
            if replica.as_ref().is_some_and(|replica| overlap(replica, folder)) {
                return Err(self.refuse(folder, Clash::Replica(String::new())));
            }
        }
        for object in &objects {
            if overlap(output, object) {
                return Err(self.refuse(object, Clash::Output(String::new())));
            }
            if scratch.contains(object) {
                return Err(self.refuse(object, Clash::Scratch));
            }
            if replica.as_ref().is_some_and(|replica| overlap(replica, object)) {
                return Err(self.refuse(object, Clash::Replica(String::new())));
            }
        }
        let here = self.here.clone();
        if !here.is_somewhere() {
            return Ok(());
        }
        let folder = folder.cloned();
        let clash = blocking(move || {
            if let Some((url, path)) = folder.and_then(|url| Some((url.clone(), url.file_path()?)))
                && let Some(clash) = here.clash_of_folder(&Territory::of(&path, &here.mounts)?)
            {
                return Ok(Some((url, clash)));
            }
            here.clash_of_objects(objects)
        });
        match clash.await? {
            Some((url, clash)) => Err(self.refuse(&url, clash)),
            None => Ok(()),
        }
    }

    /// What workers offer is input of this run or the next. Paths mean the same to all processes of
    /// a pool, so a folder of that name counts, and what it leads to here.
    ///
    /// # Errors
    /// `Invalid`, naming the worker and both folders.
    pub(super) async fn check_offers(&self, offers: &[Offer]) -> Result<()> {
        let output = &self.output;
        for Offer { worker, folders, .. } in offers {
            for folder in folders {
                let url: BlobUrl = folder.parse()?;
                let here = self.here.clone();
                // In a bucket nothing lies under a path.
                let path = url.file_path().filter(|_| here.output.is_some());
                let look = move |path: PathBuf| {
                    // A folder of another machine may be anything here, or nothing that can be
                    // looked at.
                    let theirs = Territory::of(&path, &here.mounts).ok();
                    Ok(meet(&here.output, &theirs, Territory::overlaps))
                };
                let meets = match path {
                    Some(path) => blocking(move || look(path)).await?,
                    None => false,
                };
                if meets || overlap(&url, output) {
                    return Err(Error::invalid(format!(
                        "OUTPUT {output} overlaps {url}, which worker {worker} offers as input; \
                            choose another OUTPUT"
                    )));
                }
            }
        }
        Ok(())
    }

    fn refuse(&self, what: &BlobUrl, clash: Clash) -> Error {
        let Self { output, replica, .. } = self;
        Error::invalid(match clash {
            Clash::Output(why) => {
                format!("OUTPUT {output} overlaps INPUT {what}{why}; choose another OUTPUT")
            }
            Clash::Scratch => format!("INPUT {what} lies in the job's own scratch"),
            Clash::Replica(why) => {
                let replica = replica.as_ref().map(ToString::to_string).unwrap_or_default();
                format!("--replica {replica} overlaps INPUT {what}{why}; name another place")
            }
        })
    }
}

impl Here {
    fn look([output, scratch, replica]: [Option<PathBuf>; 3]) -> Result<Self> {
        let mounts = Mounts::read();
        let of = |path: Option<PathBuf>| path.map(|path| Territory::of(&path, &mounts)).transpose();
        let (output, scratch, replica) = (of(output)?, of(scratch)?, of(replica)?);
        Ok(Self { mounts, output, scratch, replica })
    }

    /// Whether any of the places is a path.
    fn is_somewhere(&self) -> bool {
        self.output.is_some() || self.scratch.is_some() || self.replica.is_some()
    }

    fn clash_of_folder(&self, folder: &Territory) -> Option<Clash> {
        let with = |ours: &Option<Territory>| {
            ours.as_ref().filter(|ours| ours.overlaps(folder)).map(|ours| one_place(ours, folder))
        };
        with(&self.output).map(Clash::Output).or_else(|| with(&self.replica).map(Clash::Replica))
    }

    /// The first object that lies in one of the places. Objects come folder by folder, and each
    /// folder is looked at once.
    fn clash_of_objects(&self, objects: Vec<BlobUrl>) -> Result<Option<(BlobUrl, Clash)>> {
        let mut folders: HashMap<PathBuf, bool> = HashMap::new();
        for url in objects {
            let Some(path) = url.file_path() else { continue };
            let folder = path.parent().unwrap_or(Path::new("/"));
            let apart = match folders.get(folder) {
                Some(apart) => *apart,
                None => {
                    let apart =
                        self.clash_of_object(&Territory::of(folder, &self.mounts)?).is_none();
                    folders.insert(folder.to_owned(), apart);
                    apart
                }
            };
            if (!apart || is_link(&path))
                && let Some(clash) = self.clash_of_object(&Territory::of(&path, &self.mounts)?)
            {
                return Ok(Some((url, clash)));
            }
        }
        Ok(None)
    }

    fn clash_of_object(&self, object: &Territory) -> Option<Clash> {
        let with = |ours: &Option<Territory>| {
            ours.as_ref().filter(|ours| ours.covers(object)).map(|ours| one_place(ours, object))
        };
        let output = with(&self.output).map(Clash::Output);
        output
            .or_else(|| with(&self.scratch).map(|_| Clash::Scratch))
            .or_else(|| with(&self.replica).map(Clash::Replica))
    }
}

/// What to say of two names for what is one place.
fn one_place(ours: &Territory, theirs: &Territory) -> String {
    format!(": they lead to {} and {}", ours.real().display(), theirs.real().display())
}

fn meet(
    a: &Option<Territory>,
    b: &Option<Territory>,
    how: impl Fn(&Territory, &Territory) -> bool,
) -> bool {
    a.as_ref().zip(b.as_ref()).is_some_and(|(a, b)| how(a, b))
}

/// Looks at the file system off the async threads.
async fn blocking<T: Send + 'static>(
    look: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let looked = tokio::task::spawn_blocking(look).await;
    looked.map_err(|e| Error::bug(format!("a look at the file system did not end: {e}")))?
}
