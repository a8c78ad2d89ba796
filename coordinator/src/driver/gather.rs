//! What each INPUT finds: an object, the objects of a folder, or those that a pattern means.
//!
//! What exists is a path, whatever characters its name has; only what does not exist is read as a
//! pattern. In a path, `/./` parts a folder that is to be taken as it is from a pattern below it: a
//! client writes its working folder so.

use std::sync::Arc;

use muster_platform::store::{BlobMeta, BlobUrl, Blobs, Scheme};
use muster_platform::stores::Stores;
use muster_platform::survey::{Omitted, Survey, Wanted, is_wild, unescaped};
use muster_protocol::plan::{BadInputs, LeftOut, OBJECT_BYTES};
use muster_protocol::{Error, ErrorKind, Result};

/// Parts a folder from a pattern below it.
const BOUNDARY: &str = "/./";
/// One argument's objects.
#[derive(Debug)]
pub(super) struct Expanded {
    pub(super) objects: Vec<BlobMeta>,
    pub(super) left_out: Vec<LeftOut>,
    /// The folder that was listed, where the argument is one.
    pub(super) folder: Option<BlobUrl>,
    pub(super) url: BlobUrl,
}

/// Finds what an INPUT means. What cannot be read may be left out as `bad_inputs` says, an argument
/// by itself too; one that is not there may not. Whose input is seen by nobody else (`run_here`) is
/// told nothing of others.
///
/// # Errors
/// `Invalid` or `NotFound`, naming the argument; `Retry` where the store does not answer.
pub(super) async fn expand(
    stores: &Stores,
    text: &str,
    bad_inputs: BadInputs,
    run_here: bool,
) -> Result<Expanded> {
    let url: BlobUrl = text.parse().map_err(|e: Error| e.at("INPUT"))?;
    let store = stores.open(&url).await?;
    let found = Input { stores, store, url: url.clone(), run_here }.expand(text).await;
    match found {
        // Looked at here and now, and cannot be read: what a task would say of it later.
        Err(error)
            if error.kind == ErrorKind::Invalid
                && bad_inputs == BadInputs::Skip
                && is_odd(&url).await =>
        {
            let left_out = vec![LeftOut { url: url.to_string(), why: error.message }];
            Ok(Expanded { objects: Vec::new(), left_out, folder: None, url })
        }
        found => found,
    }
}

/// Whether a file or a folder stands under this very name and cannot be input.
async fn is_odd(url: &BlobUrl) -> bool {
    match url.file_path() {
        Some(path) => tokio::fs::symlink_metadata(path).await.is_ok(),
        None => false,
    }
}

/// Whether a path is a folder; none for what is no path.
pub(super) async fn is_folder(url: &BlobUrl) -> Option<bool> {
    let path = url.file_path()?;
    Some(tokio::fs::metadata(path).await.is_ok_and(|meta| meta.is_dir()))
}

struct Input<'a> {
    stores: &'a Stores,
    store: Arc<dyn Blobs>,
    url: BlobUrl,
    run_here: bool,
}

impl Input<'_> {
    async fn expand(&self, text: &str) -> Result<Expanded> {
        let key = self.url.key();
        if !text.ends_with('/') && !key.is_empty() {
            match self.store.head(key).await {
                Ok(meta) => return Ok(self.objects(vec![meta])),
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => return Err(self.at(error)),
            }
        }
        // One slash ends a folder's name; a second one is a name of its own in a bucket.
        let folder = key.strip_suffix('/').unwrap_or(key);
        let plain = !is_wild(key) && unescaped(key) == key;
        if plain || self.is_folder(folder).await? {
            return self.folder(folder).await;
        }
        let literal = match (self.url.scheme(), text.split_once(BOUNDARY)) {
            (Scheme::File, Some((folder, _))) => folder.parse::<BlobUrl>()?.key().to_owned(),
            _ => String::new(),
        };
        let rest = if literal.is_empty() {
            key
        } else {
            key.strip_prefix(&literal).unwrap_or(key).trim_start_matches('/')
        };
        self.pattern(literal, rest).await
    }

    fn objects(&self, objects: Vec<BlobMeta>) -> Expanded {
        Expanded { objects, left_out: Vec::new(), folder: None, url: self.url.clone() }
    }

    /// Whether something lies below a key.
    async fn is_folder(&self, key: &str) -> Result<bool> {
        if let Some(is_folder) = is_folder(&self.url.with_key(key)).await {
            return Ok(is_folder);
        }
        match self.store.list(key, 1).await {
            Ok(found) => Ok(!found.is_empty()),
            Err(error) if error.kind == ErrorKind::Exhausted => Ok(true),
            Err(error) => Err(self.at(error)),
        }
    }

    async fn folder(&self, base: &str) -> Result<Expanded> {
        let survey = self.survey(&Wanted::all(base, self.stores.bounds())).await?;
        let nothing = survey.objects.is_empty() && survey.omitted.is_empty();
        if nothing && is_folder(&self.url).await != Some(true) {
            let why = match survey.hidden {
                true => "it holds only names that begin with _ or .",
                false => "neither such an object nor anything below it",
            };
            return Err(self.not_there(why));
        }
        Ok(Expanded { folder: Some(self.url.clone()), ..self.expanded(survey) })
    }

    /// A pattern below a folder.
    async fn pattern(&self, mut base: String, pattern: &str) -> Result<Expanded> {
        let mut rest = pattern;
        while let Some((segment, below)) = rest.split_once('/') {
            // A key may begin with a slash, and no folder stands for what is before it.
            if base.is_empty() && segment.is_empty() {
                break;
            }
            let folder = match is_wild(segment) {
                false => unescaped(segment),
                // Brackets and braces are in names of folders, too.
                true if !segment.contains(['*', '?'])
                    && self.is_folder(&join(&base, segment)).await? =>
                {
                    segment.to_owned()
                }
                true => break,
            };
            (base, rest) = (join(&base, &folder), below);
        }
        if !is_wild(rest) {
            // Backslashes before all that would be special: a name, as a pattern writes it.
            return match self.store.head(&join(&base, &unescaped(rest))).await {
                Ok(meta) => Ok(self.objects(vec![meta])),
                Err(error) if error.kind == ErrorKind::NotFound => {
                    Err(self.not_there("neither such an object nor anything below it"))
                }
                Err(error) => Err(self.at(error)),
            };
        }
        let wanted = Wanted::matching(base, rest, self.stores.bounds()).map_err(|e| self.at(e))?;
        let survey = self.survey(&wanted).await?;
        if survey.objects.is_empty() && survey.omitted.is_empty() {
            return Err(self.not_there("no object matches it"));
        }
        Ok(self.expanded(survey))
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        let limit = self.stores.objects_max();
        self.store.survey(wanted).await.map_err(|e| match e.kind {
            ErrorKind::Exhausted => {
                self.at(Error::invalid(format!("{} ({})", too_many(limit), e.message)))
            }
            _ => self.at(e),
        })
    }

    fn expanded(&self, survey: Survey) -> Expanded {
        let named = |omitted: Omitted| LeftOut {
            url: self.url.with_key(omitted.key).to_string(),
            why: omitted.why,
        };
        Expanded {
            left_out: survey.omitted.into_iter().map(named).collect(),
            ..self.objects(survey.objects)
        }
    }

    fn not_there(&self, why: &str) -> Error {
        let seen = match self.url.scheme() {
            _ if self.run_here => "",
            Scheme::File => {
                ", as the coordinator sees it; in a pool every process must see a path under the \
                    same name"
            }
            _ => ", as the coordinator sees it",
        };
        let text = format!("INPUT {} is not there: {why}{seen}", self.url);
        Error::new(ErrorKind::NotFound, text)
    }

    fn at(&self, error: Error) -> Error {
        error.at(format!("INPUT {}", self.url))
    }
}

/// What is said of an input with too many objects.
pub(super) fn too_many(limit: usize) -> Error {
    Error::invalid(format!(
        "the input has more than {limit} objects, the limit (store.objects_max, or what --memory \
            has room for in a run here: {OBJECT_BYTES} bytes for each); give more --memory, or \
            join small objects"
    ))
}

/// A path below another.
pub(super) fn join(base: &str, below: &str) -> String {
    if base.is_empty() { below.to_owned() } else { format!("{base}/{below}") }
}
