//! Takes, renews, confirms and releases claims, over any store. What follows from what stands is
//! decided in [`super::judge`].
//!
//! One thing at a time for each job: a renewal that overtook the release would leave a claim
//! behind.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::future::{self, Either};
use tokio::sync::Mutex as Turn;

use super::judge::{self, Decision, Known, Life, Seen, Watch};
use super::leftovers::{self, Removed};
use super::{CLAIM_BYTES_MAX, CLAIMS_MAX, Claim, ClaimId, NAMED_MAX, Owner, Process, VERSION};
use crate::clock::Clock;
use crate::config;
use crate::store::{Access, BlobUrl, Blobs};
use crate::stores::Stores;
use muster_protocol::error::{Error, ErrorKind, Result};
use muster_protocol::ids::{DeploymentId, JobId};
use muster_protocol::names;
use muster_protocol::planted::{self, Bug};
use muster_protocol::wire::BlobRef;

/// Pause between two looks at claims of which it is not known whether their owners live, in
/// milliseconds.
const LOOK_MS: u64 = 250;
/// So long somebody who lives may take to draw a ticket, in milliseconds, before whoever waits for
/// that gives up.
const DRAWING_MS: u64 = 5000;
/// So long one confirmation serves several steps, in milliseconds.
const REUSE_MS: u64 = 100;
/// Tickets that are drawn for one claim, where this process sleeps meanwhile.
const DRAWS_MAX: u32 = 4;
/// Tries of a look that meets with claims which are being written.
const LOOKS_MAX: u32 = 3;

/// Whether whoever writes a claim may still do so: a leader that leads.
#[async_trait]
pub trait Permit: Send + Sync {
    /// Returns when that is known.
    ///
    /// # Errors
    /// `Fenced` where somebody else may.
    async fn permitted(&self) -> Result<()>;
}

/// Nobody but this process writes its claims.
#[async_trait]
impl Permit for () {
    async fn permitted(&self) -> Result<()> {
        Ok(())
    }
}

/// Asks the system of the first process for the second.
type Look = dyn Fn(&Process, &Process) -> Known + Send + Sync;

/// One process's hand in claims. Cloning shares it.
#[derive(Clone)]
pub struct Claims {
    shared: Arc<Shared>,
}

struct Shared {
    deployment: DeploymentId,
    owner: Owner,
    look: Box<Look>,
    say: Box<dyn Fn(&str) + Send + Sync>,
    clock: Arc<dyn Clock>,
    settings: config::Claim,
    jobs: Mutex<BTreeMap<JobId, Entry>>,
}

/// A job whose claim this process has written.
#[derive(Clone)]
struct Entry {
    output: BlobUrl,
    /// OUTPUT stood as a folder before.
    existed: bool,
    /// The journal knows the job.
    journalled: bool,
    /// Somebody is about to withdraw it.
    withdrawing: bool,
    /// Held by whoever writes the claim; true once it is released.
    turn: Arc<Turn<bool>>,
}

/// A claim that stands, for people.
#[derive(Debug, Clone)]
pub struct Found {
    /// What was seen.
    pub seen: Seen,
    /// What of it could be removed.
    pub size: Removed,
}

impl Shared {
    /// Both clocks: one of them stands still while a machine is suspended, the other may be set.
    fn moment(&self) -> (u64, u64) {
        (self.clock.now_ms(), self.clock.unix_ms())
    }

    fn is_within(&self, (now_ms, unix_ms): (u64, u64), bound_ms: u64) -> bool {
        let later = self.moment();
        later.0.saturating_sub(now_ms) <= bound_ms && later.1.abs_diff(unix_ms) <= bound_ms
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("deployment", &self.shared.deployment)
            .finish_non_exhaustive()
    }
}

/// A claim that a job goes by: looked at before each step that changes OUTPUT.
#[derive(Clone)]
pub struct Held {
    claims: Claims,
    store: Arc<dyn Blobs>,
    output: BlobUrl,
    job: JobId,
    confirmed: Arc<Mutex<Option<(u64, u64)>>>,
}

impl Claims {
    /// Of a deployment whose leader is `owner`. `look` asks the system for a process, `say` tells
    /// people what was removed.
    pub fn new(
        deployment: DeploymentId,
        owner: Owner,
        look: impl Fn(&Process, &Process) -> Known + Send + Sync + 'static,
        say: impl Fn(&str) + Send + Sync + 'static,
        clock: Arc<dyn Clock>,
        settings: config::Claim,
    ) -> Self {
        let (look, say, jobs) = (Box::new(look), Box::new(say), Mutex::default());
        Self { shared: Arc::new(Shared { deployment, owner, look, say, clock, settings, jobs }) }
    }

    fn id(&self, job: &JobId) -> ClaimId {
        ClaimId { deployment: self.shared.deployment.clone(), job: job.clone() }
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, BTreeMap<JobId, Entry>> {
        self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, job: &JobId, output: &BlobUrl, existed: bool, journalled: bool) -> Entry {
        let (output, turn) = (output.clone(), Arc::default());
        self.jobs()
            .entry(job.clone())
            .or_insert(Entry { output, existed, journalled, withdrawing: false, turn })
            .clone()
    }

    /// Whether its jobs end with this process: a run here, of which nobody else has a part.
    pub fn is_run_here(&self) -> bool {
        self.shared.owner.run_here
    }

    /// Pause between two renewals, in milliseconds.
    pub fn renew_ms(&self) -> u64 {
        self.shared.settings.renew_ms
    }

    /// Jobs that were claimed for and of which the journal did not know when that was asked last.
    pub fn planned(&self) -> Vec<JobId> {
        self.jobs()
            .iter()
            .filter(|(_, entry)| !entry.journalled)
            .map(|(job, _)| job.clone())
            .collect()
    }

    /// The journal knows this job now.
    pub fn journalled(&self, job: &JobId) {
        if let Some(entry) = self.jobs().get_mut(job) {
            entry.journalled = true;
        }
    }

    /// Whether the caller is the first that wants to withdraw this one.
    pub fn begins_withdrawal(&self, job: &JobId) -> bool {
        self.jobs()
            .get_mut(job)
            .is_some_and(|entry| !std::mem::replace(&mut entry.withdrawing, true))
    }

    /// Claims OUTPUT for a job, and removes what dead runs have left there. `existed` says whether
    /// OUTPUT stood as a folder before: if not, and nothing comes of it, it goes again.
    ///
    /// # Errors
    /// `Invalid`, naming the owner, where somebody else holds OUTPUT; `Fenced` by the permit; else
    /// the first error of the store. Then nothing of the claim stays.
    pub async fn take(
        &self,
        stores: &Stores,
        output: &BlobUrl,
        job: &JobId,
        existed: bool,
        permit: &dyn Permit,
    ) -> Result<()> {
        let entry = self.entry(job, output, existed, false);
        let turn = entry.turn.lock().await;
        let store = stores.open(output).await?;
        permit.permitted().await?;
        let taken = self.draw(stores, &store, output, job, None).await;
        let taken = match taken {
            Ok((me, dead)) => self.take_over(stores, &store, output, &me, &dead).await,
            Err(error) => Err(error),
        };
        drop(turn);
        if let Err(error) = taken {
            if error.kind != ErrorKind::Fenced {
                self.withdraw(stores, job, permit).await?;
            }
            return Err(error);
        }
        Ok(())
    }

    /// Looks whether a job holds OUTPUT; where its claim is gone and nobody else's stands, it is
    /// made again. `publishing` is what the next one needs to remove what may appear now.
    ///
    /// # Errors
    /// As [`Claims::take`], but what stands stays.
    pub async fn confirm(
        &self,
        stores: &Stores,
        (output, job): (&BlobUrl, &JobId),
        publishing: Option<&BlobRef>,
        permit: &dyn Permit,
    ) -> Result<Held> {
        let entry = self.entry(job, output, true, true);
        let turn = entry.turn.lock().await;
        let store = stores.open(output).await?;
        permit.permitted().await?;
        let (me, dead) = self.draw(stores, &store, output, job, publishing).await?;
        self.take_over(stores, &store, output, &me, &dead).await?;
        drop(turn);
        let confirmed = Arc::default();
        Ok(Held {
            claims: self.clone(),
            store,
            output: output.clone(),
            job: job.clone(),
            confirmed,
        })
    }

    /// Shows that the owner lives. A claim that is gone stays gone: [`Claims::confirm`] decides
    /// what follows.
    ///
    /// # Errors
    /// The first error of the store.
    pub async fn renew(&self, stores: &Stores, output: &BlobUrl, job: &JobId) -> Result<()> {
        let entry = self.entry(job, output, true, true);
        let released = entry.turn.lock().await;
        if *released {
            return Ok(());
        }
        let store = stores.open(output).await?;
        let asked = self.shared.moment();
        let claim = read(&store, output, &self.id(job)).await?.flatten();
        // Where this process was asleep meanwhile, it may have been removed: the next renewal looks
        // again.
        if let Some(mut claim) =
            claim.filter(|_| self.shared.is_within(asked, self.shared.settings.dead_after_ms / 2))
        {
            self.sign(&mut claim);
            put(&store, output, &claim).await?;
        }
        Ok(())
    }

    /// Whether a job holds OUTPUT still: what its claim stood for is its own to clean up. One that
    /// has no claim and meets with none does.
    ///
    /// # Errors
    /// The first error of the store.
    pub async fn is_alone(&self, stores: &Stores, output: &BlobUrl, job: &JobId) -> Result<bool> {
        let store = stores.open(output).await?;
        let (own, others) = self.look(&store, output, &self.id(job), &mut Watch::default()).await?;
        Ok(match own.flatten() {
            Some(me) => judge::overruled_by(&me, &others).is_none(),
            None => others.is_empty(),
        })
    }

    /// Removes a job's claim, and the folders above it that are empty then.
    ///
    /// # Errors
    /// `Fenced` by the permit; else the first error of the store.
    pub async fn release(
        &self,
        stores: &Stores,
        output: &BlobUrl,
        job: &JobId,
        permit: &dyn Permit,
    ) -> Result<()> {
        let entry = self.entry(job, output, true, true);
        let mut released = entry.turn.lock().await;
        let store = stores.open(output).await?;
        permit.permitted().await?;
        remove(&store, output, &self.id(job)).await?;
        *released = true;
        // Not before: what is cut short here is done again at the end of the process.
        if !entry.existed {
            store.remove_folder(output.key()).await.map_err(|e| e.at(output))?;
        }
        self.jobs().remove(job);
        Ok(())
    }

    /// Removes the claim of a job that came to nothing, and OUTPUT where that was made for it and
    /// is empty.
    ///
    /// # Errors
    /// As [`Claims::release`].
    pub async fn withdraw(&self, stores: &Stores, job: &JobId, permit: &dyn Permit) -> Result<()> {
        let Some(Entry { output, .. }) = self.jobs().get(job).cloned() else { return Ok(()) };
        self.release(stores, &output, job, permit).await
    }

    /// Withdraws what was claimed for jobs that the journal does not know, at the end of this
    /// process.
    ///
    /// # Errors
    /// As [`Claims::release`].
    pub async fn withdraw_planned(&self, stores: &Stores) -> Result<()> {
        for job in self.planned() {
            self.withdraw(stores, &job, &()).await?;
        }
        Ok(())
    }

    /// A claim as this process writes it.
    fn sign(&self, claim: &mut Claim) {
        claim.beat = claim.beat.wrapping_add(1);
        claim.owner = self.shared.owner.clone();
        if let Some(mark) = &self.shared.owner.mark
            && !claim.marks.contains(mark)
            && claim.marks.len() < NAMED_MAX
        {
            claim.marks.push(mark.clone());
        }
    }

    /// Waits for one's turn. Gives one's claim, and all others that stand.
    async fn draw(
        &self,
        stores: &Stores,
        store: &Arc<dyn Blobs>,
        output: &BlobUrl,
        job: &JobId,
        publishing: Option<&BlobRef>,
    ) -> Result<(Claim, Vec<Seen>)> {
        let (clock, settings) = (&*self.shared.clock, &self.shared.settings);
        let (id, mut watch) = (self.id(job), Watch::default());
        let asked = self.shared.moment();
        let (own, others) = self.look(store, output, &id, &mut watch).await?;
        let kept =
            own.flatten().filter(|me| me.ticket > 0 && judge::overruled_by(me, &others).is_none());
        let (mut me, mut stood) = match kept {
            Some(me) => (me, asked),
            None => self.choose(store, output, &id, &mut watch).await?,
        };
        me.publishing = publishing.cloned().or(me.publishing);
        let (began_ms, mut written_ms, mut in_time, mut draws) = (clock.now_ms(), None, true, 1);
        loop {
            if in_time && !self.shared.is_within(stood, settings.dead_after_ms / 2) {
                // This process was asleep, or the store is slow: does it stand still?
                let asked = self.shared.moment();
                let (own, others) = self.look(store, output, &id, &mut watch).await?;
                let stands = own.flatten().is_some_and(|own| own.ticket == me.ticket);
                in_time = stands && judge::overruled_by(&me, &others).is_none();
                stood = asked;
            }
            if !in_time {
                // It may have been taken for dead and removed, and somebody who has not seen it may
                // hold OUTPUT: its ticket says nothing any more, nor whom it names.
                if draws == DRAWS_MAX {
                    return Err(stood_still(output));
                }
                let publishing = me.publishing.take();
                (me, stood) = self.choose(store, output, &id, &mut watch).await?;
                (me.publishing, written_ms) = (publishing, None);
                draws += 1;
            }
            let now_ms = clock.now_ms();
            in_time = true;
            if written_ms
                .is_none_or(|written: u64| now_ms.saturating_sub(written) >= settings.renew_ms)
            {
                in_time = self.write(store, output, &mut me, &mut stood).await?;
                written_ms = Some(now_ms);
                if !in_time {
                    continue;
                }
            }
            let (own, others) = self.look(store, output, &id, &mut watch).await?;
            if own.is_none() {
                return Err(Error::retry(format!(
                    "the claim on OUTPUT {output} was removed while it was made"
                )));
            }
            if planted::is(Bug::CleanBesideOwners) {
                self.succeed(stores, store, output, &me, &others).await?;
            }
            let named = |of: &ClaimId| others.iter().find(|seen| seen.id == *of);
            match judge::decide(&me, &others) {
                // A look that took longer says nothing about now: this process may have been
                // asleep.
                Decision::Hold | Decision::Overrule(_)
                    if clock.now_ms().saturating_sub(now_ms) > settings.dead_after_ms / 2 => {}
                Decision::Hold => return Ok((me, others)),
                Decision::Overrule(dead) => {
                    let silent = others.iter().any(|seen| {
                        dead.contains(&seen.ticket())
                            && self.known(seen.claim.as_ref()) != Known::Gone
                    });
                    me.overruled.extend(dead);
                    if me.overruled.len() > NAMED_MAX {
                        let why = format!(
                            "more than {NAMED_MAX} dead owners have claims on OUTPUT {output}; \
                                `muster doctor --output {output} --mend` removes them"
                        );
                        return Err(Error::exhausted(why));
                    }
                    in_time = self.write(store, output, &mut me, &mut stood).await?;
                    written_ms = Some(clock.now_ms());
                    // One that was only asleep may have asked before this and be about to act: that
                    // lands before anything of ours.
                    if silent {
                        clock.pause(settings.renew_ms).await;
                    }
                }
                Decision::Refuse(by) => return Err(self.refusal(output, named(&by))),
                Decision::Lost(by) => return Err(lost(output, named(&by))),
                Decision::Wait if is_stuck(now_ms.saturating_sub(began_ms), settings, &others) => {
                    return Err(self.refusal(output, others.first()));
                }
                Decision::Wait => clock.pause(LOOK_MS.min(settings.renew_ms)).await,
            }
        }
    }

    /// Draws a ticket, which is to be written next. Also gives since when others can see that it is
    /// drawn.
    async fn choose(
        &self,
        store: &Arc<dyn Blobs>,
        output: &BlobUrl,
        id: &ClaimId,
        watch: &mut Watch,
    ) -> Result<(Claim, (u64, u64))> {
        let clock = &*self.shared.clock;
        let mut me = Claim {
            version: VERSION,
            id: id.clone(),
            ticket: 0,
            beat: clock.random(),
            owner: Owner::default(),
            since_unix_ms: clock.unix_ms(),
            overruled: Vec::new(),
            marks: Vec::new(),
            publishing: None,
        };
        self.sign(&mut me);
        let since = self.shared.moment();
        put(store, output, &me).await?;
        let (_, others) = self.look(store, output, id, watch).await?;
        me.ticket = judge::next_ticket(&others);
        Ok((me, since))
    }

    /// Writes one's claim anew. `stood` is when it was written last, and becomes now. False where
    /// that was so long ago that others may have taken it for dead before this.
    async fn write(
        &self,
        store: &Arc<dyn Blobs>,
        output: &BlobUrl,
        me: &mut Claim,
        stood: &mut (u64, u64),
    ) -> Result<bool> {
        self.sign(me);
        let now = self.shared.moment();
        put(store, output, me).await?;
        let last = std::mem::replace(stood, now);
        Ok(self.shared.is_within(last, self.shared.settings.dead_after_ms))
    }

    /// What a new holder does for those before it, which may take long: it shows meanwhile that it
    /// lives.
    async fn take_over(
        &self,
        stores: &Stores,
        store: &Arc<dyn Blobs>,
        output: &BlobUrl,
        me: &Claim,
        others: &[Seen],
    ) -> Result<()> {
        let beats = async {
            let (mut me, mut stood) = (me.clone(), self.shared.moment());
            loop {
                self.shared.clock.pause(self.shared.settings.renew_ms).await;
                // What others have removed since must not come back.
                if !self.shared.is_within(stood, self.shared.settings.dead_after_ms) {
                    return Err(stood_still(output));
                }
                match self.write(store, output, &mut me, &mut stood).await {
                    Ok(true) => {}
                    Ok(false) => return Err(stood_still(output)),
                    Err(error) => tracing::warn!(%error, "the claim on OUTPUT was not renewed"),
                }
            }
        };
        match future::select(pin!(self.succeed(stores, store, output, me, others)), pin!(beats))
            .await
        {
            Either::Left((done, _)) => done,
            Either::Right((late, _)) => late,
        }
    }

    /// Dead runs here leave nothing, and no dead owner keeps its claim.
    async fn succeed(
        &self,
        stores: &Stores,
        store: &Arc<dyn Blobs>,
        output: &BlobUrl,
        me: &Claim,
        others: &[Seen],
    ) -> Result<()> {
        for seen in others {
            if judge::may_remove(seen, me) {
                let removed = leftovers::remove_dead(stores, output, seen).await?;
                if !removed.is_nothing() {
                    let whose = seen.claim.as_ref().map(Claim::describe).unwrap_or_default();
                    (self.shared.say)(&format!(
                        "removed from OUTPUT {output} {removed} that a dead run had left ({whose})"
                    ));
                }
            }
            if me.overruled.contains(&seen.ticket()) {
                let key = output.join(&names::claim_path(&seen.id));
                store.delete(key.key()).await.map_err(|e| e.at(&key))?;
            }
        }
        Ok(())
    }

    /// What the system says of the process that a claim names.
    fn known(&self, claim: Option<&Claim>) -> Known {
        let process = claim.map(|claim| &claim.owner.process);
        process.map_or(Known::Unknown, |process| {
            (self.shared.look)(&self.shared.owner.process, process)
        })
    }

    /// The claims on an OUTPUT: one's own (an inner none where it cannot be read), and the others.
    async fn look(
        &self,
        store: &Arc<dyn Blobs>,
        output: &BlobUrl,
        own: &ClaimId,
        watch: &mut Watch,
    ) -> Result<(Option<Option<Claim>>, Vec<Seen>)> {
        let (mut mine, mut others) = (None, Vec::new());
        let asked_ms = self.shared.clock.now_ms();
        for (id, version, claim) in list(store, output).await? {
            if id == *own {
                mine = Some(claim);
                continue;
            }
            let owner = claim.as_ref().map(|claim| &claim.owner);
            let known = self.known(claim.as_ref());
            let bound = (asked_ms, self.shared.clock.now_ms(), self.shared.settings.dead_after_ms);
            let life = watch.life(&id, &version, owner, known, bound);
            others.push(Seen { id, claim, life });
        }
        Ok((mine, others))
    }

    /// The claims on an OUTPUT, after a watch over `watch_ms` milliseconds for those of which the
    /// system says nothing.
    ///
    /// # Errors
    /// The first error of the store.
    pub async fn find(
        &self,
        stores: &Stores,
        output: &BlobUrl,
        own: &JobId,
        watch_ms: u64,
    ) -> Result<Vec<Found>> {
        let (store, clock) = (stores.open(output).await?, &*self.shared.clock);
        let (mut watch, began_ms) = (Watch::default(), clock.now_ms());
        let seen = loop {
            let (_, others) = self.look(&store, output, &self.id(own), &mut watch).await?;
            let unknown = others.iter().any(|seen| seen.life == Life::Unknown);
            if !unknown || clock.now_ms().saturating_sub(began_ms) > watch_ms {
                break others;
            }
            clock.pause(LOOK_MS).await;
        };
        let mut found = Vec::new();
        for seen in seen {
            let size = leftovers::size(stores, output, &seen).await?;
            found.push(Found { seen, size });
        }
        Ok(found)
    }

    fn refusal(&self, output: &BlobUrl, by: Option<&Seen>) -> Error {
        let (holder, alive) = match by.and_then(|seen| Some((seen.claim.as_ref()?, seen))) {
            Some((claim, seen)) => {
                let how = if seen.life == Life::Lives {
                    "it is alive"
                } else {
                    "it has not answered yet"
                };
                (claim.describe(), how)
            }
            None => ("a claim that this version cannot read".to_owned(), "its owner is alive"),
        };
        let dead_after_ms = self.shared.settings.dead_after_ms;
        Error::invalid(format!(
            "OUTPUT {output} is held by {holder}; {alive}. Wait for its end, or choose another \
                OUTPUT (an owner that shows no sign of life for {dead_after_ms} ms, \
                claim.dead_after_ms, loses it)"
        ))
    }
}

fn stood_still(output: &BlobUrl) -> Error {
    Error::retry(format!(
        "the claim on OUTPUT {output} was not written for longer than claim.dead_after_ms while it \
            was made: this process stood still, or the store is slow"
    ))
}

/// Whether waiting has become pointless: somebody lives who draws no ticket, stopped in the midst
/// of it.
fn is_stuck(waited_ms: u64, settings: &config::Claim, others: &[Seen]) -> bool {
    let known = others.iter().all(|seen| seen.life != Life::Unknown);
    waited_ms > settings.dead_after_ms.saturating_mul(2) || known && waited_ms > DRAWING_MS
}

fn lost(output: &BlobUrl, by: Option<&Seen>) -> Error {
    let who = by
        .and_then(|seen| seen.claim.as_ref())
        .map_or_else(|| "somebody else".to_owned(), Claim::describe);
    Error::invalid(format!(
        "this job has lost its claim on OUTPUT {output} to {who}: it showed no sign of life for \
            longer than claim.dead_after_ms. It changes nothing there any more"
    ))
}

impl Held {
    /// Returns when OUTPUT is known to be this job's still.
    ///
    /// # Errors
    /// `Invalid` where somebody has taken it, or the claim is gone; else the first error of the
    /// store.
    pub async fn check(&self) -> Result<()> {
        if planted::is(Bug::NeverConfirm) {
            return Ok(());
        }
        let shared = &self.claims.shared;
        let confirmed = *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        if confirmed.is_some_and(|confirmed| shared.is_within(confirmed, REUSE_MS)) {
            return Ok(());
        }
        loop {
            let asked = shared.moment();
            let id = self.claims.id(&self.job);
            let (own, others) =
                self.claims.look(&self.store, &self.output, &id, &mut Watch::default()).await?;
            let Some(me) = own.flatten() else { return Err(lost(&self.output, others.first())) };
            if let Some(by) = judge::overruled_by(&me, &others) {
                return Err(lost(&self.output, Some(by)));
            }
            // An answer that took longer says nothing about now: this process may have been asleep.
            if shared.is_within(asked, shared.settings.dead_after_ms / 2) {
                *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
                return Ok(());
            }
        }
    }
}

/// The claims in the folder of an OUTPUT, with their versions; an inner none where one cannot be
/// read. Whatever else lies there is left alone.
async fn list(
    store: &Arc<dyn Blobs>,
    output: &BlobUrl,
) -> Result<Vec<(ClaimId, String, Option<Claim>)>> {
    let folder = output.join(&names::claims_path());
    let mut looks = 0;
    loop {
        looks += 1;
        let listed = store.list(folder.key(), CLAIMS_MAX).await.map_err(|e| e.at(&folder))?;
        let (mut found, mut moved) = (Vec::new(), false);
        for meta in listed {
            let name = meta.key.strip_prefix(folder.key()).and_then(|rest| rest.strip_prefix('/'));
            let Some(id) = name.and_then(names::claim_of) else { continue };
            match read_at(store, &id, &meta.key, meta.bytes).await {
                Ok(claim) => found.push((id, meta.version, claim)),
                // It is written or removed at this moment.
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) if error.kind == ErrorKind::Corrupt => {
                    moved = true;
                    found.push((id, meta.version, None));
                }
                Err(error) => return Err(error.at(&folder)),
            }
        }
        if !moved || looks == LOOKS_MAX {
            return Ok(found);
        }
    }
}

async fn read_at(
    store: &Arc<dyn Blobs>,
    id: &ClaimId,
    key: &str,
    bytes: u64,
) -> Result<Option<Claim>> {
    if bytes > CLAIM_BYTES_MAX {
        return Ok(None);
    }
    let bytes = store.read(key, 0..bytes, Access::Cached).await?;
    Ok(Claim::from_bytes(id, &bytes).ok())
}

/// One claim: none where it is not there, an inner none where it cannot be read.
async fn read(
    store: &Arc<dyn Blobs>,
    output: &BlobUrl,
    id: &ClaimId,
) -> Result<Option<Option<Claim>>> {
    let url = output.join(&names::claim_path(id));
    let read = match store.head(url.key()).await {
        Ok(meta) => read_at(store, id, url.key(), meta.bytes).await,
        Err(error) => Err(error),
    };
    match read {
        Ok(claim) => Ok(Some(claim)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.at(&url)),
    }
}

async fn put(store: &Arc<dyn Blobs>, output: &BlobUrl, claim: &Claim) -> Result<()> {
    let url = output.join(&names::claim_path(&claim.id));
    let put = store.put(url.key(), claim.to_bytes()?.into()).await;
    put.map_err(|e| Error::new(e.kind, format!("cannot write into OUTPUT {output}: {}", e.message)))
}

async fn remove(store: &Arc<dyn Blobs>, output: &BlobUrl, id: &ClaimId) -> Result<()> {
    let url = output.join(&names::claim_path(id));
    store.delete(url.key()).await.map_err(|e| e.at(&url))?;
    let folder = output.join(names::SCRATCH_DIR);
    store.prune(folder.key()).await.map_err(|e| e.at(&folder))
}
