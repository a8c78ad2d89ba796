//! The election by example, and against random lives of a leader and of the process itself.

use super::*;

const SILENCE_MS: u64 = 4000;
const BEAT_MS: u64 = 1000;
const TICK_MS: u64 = 50;
/// Silence, jitter and a tick.
const DUE_MS: u64 = SILENCE_MS + SILENCE_MS / JITTER_PARTS + 2 * TICK_MS;

fn sign(epoch: u64) -> Sign {
    Sign { deployment: Some("d1".parse().expect("id")), epoch: Epoch(epoch) }
}

fn beat(epoch: u64) -> Input {
    Input::Beat(Some(sign(epoch)))
}

fn read(epoch: u64) -> Input {
    Input::JournalRead { deployment: Some("d1".parse().expect("id")), epoch: Epoch(epoch) }
}

struct Bench {
    election: Election,
    now_ms: u64,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let settings = Settings { silence_ms: SILENCE_MS, beat_ms: BEAT_MS };
        Self { election: Election::new(settings, seed), now_ms: 77 }
    }

    /// One that follows the leader of epoch 3.
    fn following(seed: u64) -> Self {
        let mut bench = Self::new(seed);
        assert_eq!(bench.step(Input::Tick), [Effect::ReadJournal]);
        assert_eq!(bench.step(read(3)), [Effect::Ask]);
        assert_eq!(
            bench.step(Input::Asked(Answer::Leads(Epoch(3)))),
            [Effect::Follow(Epoch(3)), Effect::Forget]
        );
        bench
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        self.election.step(self.now_ms, input)
    }

    /// Ticks until something is to be done, at most for so long; gives what and after how long.
    fn until_effect(&mut self, bound_ms: u64) -> Option<(Vec<Effect>, u64)> {
        let begin_ms = self.now_ms;
        while self.now_ms - begin_ms < bound_ms {
            self.now_ms += TICK_MS;
            let effects = self.step(Input::Tick);
            if !effects.is_empty() {
                return Some((effects, self.now_ms - begin_ms));
            }
        }
        None
    }

    /// Ticks on while questions stay unanswered, until the journal is to be read; gives after how
    /// long.
    fn until_read(&mut self, bound_ms: u64) -> Option<u64> {
        let begin_ms = self.now_ms;
        while let Some((effects, _)) =
            self.until_effect(bound_ms.saturating_sub(self.now_ms - begin_ms))
        {
            match effects[..] {
                [Effect::ReadJournal] => return Some(self.now_ms - begin_ms),
                [Effect::Ask] => assert_eq!(self.step(Input::Asked(Answer::Silence)), []),
                _ => panic!("{effects:?}"),
            }
        }
        None
    }
}

#[test]
fn a_start_where_nobody_leads_leads_at_once() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.step(Input::Tick), [Effect::ReadJournal]);
    assert_eq!(bench.step(Input::JournalRead { deployment: None, epoch: Epoch(0) }), [Effect::Ask]);
    assert_eq!(bench.step(Input::Asked(Answer::Nobody)), [Effect::Begin(Cause::Start(Epoch(0)))]);
    let mut bench = Bench::new(1);
    bench.step(Input::Tick);
    bench.step(read(7));
    assert_eq!(bench.step(Input::Asked(Answer::Nobody)), [Effect::Begin(Cause::Start(Epoch(7)))]);
    assert!(
        Cause::Start(Epoch(7)).takes_over() && !Cause::Start(Epoch(0)).takes_over(),
        "the first follows nobody"
    );
}

#[test]
fn a_start_beside_a_leader_stands_by() {
    let mut bench = Bench::following(1);
    for _ in 0..60 {
        bench.now_ms += BEAT_MS;
        for _ in 0..BEAT_MS / TICK_MS {
            assert_eq!(bench.step(Input::Tick), []);
        }
        assert_eq!(bench.step(beat(3)), []);
    }
}

#[test]
fn a_start_beside_a_silent_leader_waits_the_silence() {
    let mut bench = Bench::new(1);
    bench.step(Input::Tick);
    bench.step(read(3));
    assert_eq!(bench.step(Input::Asked(Answer::Silence)), [Effect::Forget]);
    let waited_ms = bench.until_read(DUE_MS).expect("it is time");
    assert!(waited_ms >= SILENCE_MS, "{waited_ms}");
    let begin = bench.step(read(3));
    assert!(
        matches!(begin[..], [Effect::Begin(Cause::Silent { epoch: Epoch(3), .. })]),
        "{begin:?}"
    );
}

#[test]
fn a_leader_that_hangs_is_followed_after_the_silence() {
    for seed in 0..50 {
        let mut bench = Bench::following(seed);
        let waited_ms = bench.until_read(DUE_MS).expect("it is time");
        assert!((SILENCE_MS..=DUE_MS).contains(&waited_ms), "{waited_ms}");
        assert!(matches!(
            bench.step(read(3))[..],
            [Effect::Begin(Cause::Silent { epoch: Epoch(3), .. })]
        ));
    }
}

#[test]
fn a_leader_that_is_gone_is_followed_after_half_of_it() {
    let mut bench = Bench::following(5);
    let (effects, waited_ms) = bench.until_effect(DUE_MS).expect("it asks");
    assert_eq!((effects, waited_ms), (vec![Effect::Ask], SILENCE_MS / 2));
    assert_eq!(bench.step(Input::Asked(Answer::Nobody)), []);
    let jitter_ms = bench.until_read(SILENCE_MS / JITTER_PARTS + TICK_MS).expect("it is time");
    assert!(waited_ms + jitter_ms < SILENCE_MS);
    assert!(matches!(
        bench.step(read(3))[..],
        [Effect::Begin(Cause::Gone { epoch: Epoch(3), .. })]
    ));
}

#[test]
fn an_answer_is_a_sign_of_life() {
    let mut bench = Bench::following(1);
    for _ in 0..20 {
        let (effects, _) = bench.until_effect(DUE_MS).expect("it asks");
        assert_eq!(effects, [Effect::Ask]);
        assert_eq!(bench.step(Input::Asked(Answer::Leads(Epoch(3)))), []);
    }
    let (effects, _) = bench.until_effect(DUE_MS).expect("it asks");
    assert_eq!(effects, [Effect::Ask]);
    assert_eq!(bench.step(Input::Beat(None)), [], "so is a beat of another version");
    assert_eq!(
        bench.step(Input::Asked(Answer::Nobody)),
        [],
        "an answer from before it does not count"
    );
    let (effects, waited_ms) = bench.until_effect(DUE_MS).expect("it asks again");
    assert_eq!((effects, waited_ms), (vec![Effect::Ask], SILENCE_MS / 2));
}

#[test]
fn a_leader_that_was_followed_by_another_says_nothing() {
    let mut bench = Bench::following(1);
    assert_eq!(bench.step(beat(4)), [Effect::Follow(Epoch(4))]);
    let mut waited_ms = 0;
    while waited_ms < SILENCE_MS / 2 - TICK_MS {
        bench.now_ms += TICK_MS;
        waited_ms += TICK_MS;
        assert_eq!(bench.step(beat(3)), []);
        assert_eq!(bench.step(Input::Resigned(sign(3))), []);
    }
    let (effects, _) = bench.until_effect(TICK_MS).expect("its silence is that of epoch 4");
    assert_eq!(effects, [Effect::Ask]);
}

#[test]
fn a_resignation_is_followed_at_once() {
    let mut bench = Bench::following(9);
    assert_eq!(bench.step(Input::Resigned(sign(3))), []);
    let waited_ms = bench.until_read(SILENCE_MS / JITTER_PARTS + TICK_MS).expect("it is time");
    assert!(waited_ms <= SILENCE_MS / JITTER_PARTS + TICK_MS);
    assert_eq!(bench.step(read(3)), [Effect::Begin(Cause::Resigned { epoch: Epoch(3) })]);
}

#[test]
fn who_was_beaten_to_it_stands_by() {
    // By the journal, which another has written since.
    let mut bench = Bench::following(2);
    bench.until_read(DUE_MS).expect("it is time");
    assert_eq!(bench.step(read(4)), [Effect::Forget]);
    assert!(bench.until_read(SILENCE_MS).is_none(), "the new leader's silence is heard anew");
    // By a beat while it reads.
    let mut bench = Bench::following(2);
    bench.until_read(DUE_MS).expect("it is time");
    assert_eq!(bench.step(beat(4)), [Effect::Follow(Epoch(4)), Effect::Forget]);
    assert_eq!(bench.step(read(4)), [], "what comes of the reading is no longer wanted");
    // By the append.
    let mut bench = Bench::following(2);
    bench.until_read(DUE_MS).expect("it is time");
    assert!(matches!(bench.step(read(3))[..], [Effect::Begin(_)]));
    assert_eq!(bench.step(Input::Lost { epoch: Epoch(3) }), []);
    assert_eq!(bench.step(beat(4)), [Effect::Follow(Epoch(4))]);
}

#[test]
fn ones_own_pause_is_nobody_elses_silence() {
    let mut bench = Bench::following(3);
    for _ in 0..100 {
        bench.now_ms += 10 * SILENCE_MS;
        assert!(
            bench.step(Input::Tick).iter().all(|effect| *effect == Effect::Ask),
            "nothing was missed"
        );
        bench.step(Input::Asked(Answer::Silence));
        assert_eq!(bench.step(beat(3)), [], "what was sent meanwhile comes late");
    }
    // What was heard before the pause counts, but not for more than half.
    for _ in 0..SILENCE_MS / TICK_MS - 1 {
        bench.now_ms += TICK_MS;
        bench.step(Input::Tick);
        bench.step(Input::Asked(Answer::Silence));
    }
    bench.now_ms += 10 * SILENCE_MS;
    bench.step(Input::Tick);
    bench.step(Input::Asked(Answer::Silence));
    let waited_ms = bench.until_read(DUE_MS).expect("it is time");
    assert!(waited_ms >= SILENCE_MS / 2, "{waited_ms}");
}

#[test]
fn being_cut_off_is_nobody_elses_silence() {
    let mut bench = Bench::following(3);
    assert_eq!(bench.step(Input::Connection { up: false }), []);
    assert!(bench.until_effect(20 * SILENCE_MS).is_none());
    assert_eq!(bench.step(Input::Connection { up: true }), []);
    let waited_ms = bench.until_read(DUE_MS).expect("it is time");
    assert!(waited_ms >= SILENCE_MS, "{waited_ms}");
    // In the midst of a try.
    assert_eq!(bench.step(Input::Connection { up: false }), [Effect::Forget]);
    assert_eq!(bench.step(read(3)), []);
    // Before it knew anything.
    let mut bench = Bench::new(1);
    bench.step(Input::Tick);
    bench.step(Input::Connection { up: false });
    assert_eq!(bench.step(read(3)), []);
    assert_eq!(
        bench.step(Input::Connection { up: true }),
        [Effect::ReadJournal],
        "it begins again"
    );
}

#[test]
fn a_leader_that_stepped_down_follows() {
    let mut bench = Bench::new(1);
    bench.step(Input::Tick);
    bench.step(read(3));
    assert_eq!(bench.step(Input::Asked(Answer::Nobody)), [Effect::Begin(Cause::Start(Epoch(3)))]);
    bench.now_ms += 1_000_000;
    assert_eq!(bench.step(Input::Lost { epoch: Epoch(4) }), []);
    assert_eq!(bench.step(beat(5)), [Effect::Follow(Epoch(5))]);
    let waited_ms = bench.until_read(DUE_MS).expect("it takes over again");
    assert!(waited_ms >= SILENCE_MS);
}

/// Random lives: beats that come or stay away, connections that fall, pauses, answers and failed
/// tries. What must hold after each step is computed apart, from the inputs alone.
#[test]
fn no_try_without_silence_and_no_silence_without_a_try() {
    for seed in 0..2000 {
        let mut dice = Bench::new(seed).election;
        let mut bench = Bench::following(seed);
        // Time that was heard in silence since the last sign; whether there was another reason to
        // try.
        let (mut heard_ms, mut connected, mut excused, mut reading) = (0, true, false, false);
        let mut tries = 0;
        for _ in 0..400 {
            let gap_ms = if dice.draw().is_multiple_of(40) {
                dice.draw() % (3 * SILENCE_MS)
            } else {
                TICK_MS
            };
            bench.now_ms += gap_ms;
            let counts = connected && gap_ms <= SILENCE_MS / PAUSE_PARTS;
            heard_ms = if counts { heard_ms + gap_ms } else { heard_ms.min(SILENCE_MS / 2) };
            let input = match dice.draw() % 60 {
                0 => beat(3 + dice.draw() % 2),
                1 => Input::Connection { up: !connected },
                2 => Input::Resigned(sign(2 + dice.draw() % 3)),
                3 => Input::Asked(Answer::Nobody),
                4 => Input::Asked(Answer::Silence),
                5 => Input::Asked(Answer::Leads(bench.election.epoch())),
                6 if reading => read(bench.election.epoch().0 + dice.draw() % 2),
                _ => Input::Tick,
            };
            let epoch = bench.election.epoch();
            let fresh = match &input {
                Input::Beat(Some(sign)) => sign.epoch >= epoch,
                Input::Asked(Answer::Leads(_)) => true,
                Input::Connection { up } => {
                    connected = *up;
                    true
                }
                _ => false,
            };
            if fresh {
                (heard_ms, excused) = (0, false);
            }
            match &input {
                Input::Resigned(sign) => excused |= connected && sign.epoch >= epoch,
                Input::Asked(Answer::Nobody) => excused |= connected && heard_ms >= SILENCE_MS / 2,
                _ => {}
            }
            let newer = matches!(&input, Input::JournalRead { epoch: found, .. } if *found > epoch);
            for effect in bench.step(input) {
                match effect {
                    Effect::ReadJournal => {
                        assert!(connected, "seed {seed}: it tries while it is cut off");
                        assert!(
                            excused || heard_ms >= SILENCE_MS,
                            "seed {seed}: it tries after {heard_ms} ms"
                        );
                        reading = true;
                    }
                    Effect::Forget => {
                        reading = false;
                        heard_ms = 0;
                    }
                    Effect::Begin(_) => {
                        assert!(
                            reading && connected && !newer,
                            "seed {seed}: it begins after nothing that was read"
                        );
                        reading = false;
                        tries += 1;
                        let epoch = bench.election.epoch();
                        bench.step(Input::Lost { epoch });
                        (heard_ms, excused) = (0, false);
                    }
                    Effect::Ask => assert!(connected, "seed {seed}: it asks while it is cut off"),
                    Effect::Follow(_) => {}
                }
            }
        }
        // Healed, with nobody there: it tries in time.
        bench.step(Input::Connection { up: false });
        bench.step(Input::Connection { up: true });
        assert!(
            bench.until_read(DUE_MS).is_some(),
            "seed {seed}: nobody leads, and it does not try (after {tries})"
        );
    }
}

#[test]
fn a_start_beside_a_leader_of_a_term_that_is_over_takes_over() {
    let mut bench = Bench::new(1);
    bench.step(Input::Tick);
    bench.step(read(5));
    assert_eq!(bench.step(Input::Asked(Answer::Leads(Epoch(3)))), [Effect::Forget]);
    assert!(bench.until_read(DUE_MS).is_some(), "nobody who leads is there");
    assert!(matches!(
        bench.step(read(5))[..],
        [Effect::Begin(Cause::Silent { epoch: Epoch(5), .. })]
    ));
}
