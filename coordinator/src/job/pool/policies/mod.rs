//! Who is alive, who is fit, and how fast to recover: the pure policies behind the job machine's
//! decisions about workers.
//!
//! ```text
//!   heartbeats, messages ──▶ phi::Detector ───────┐
//!   own pauses, cut-offs ──▶ absence::Absence ──▶ forgive
//!   outcomes of attempts ──▶ breaker::Breaker ────┼──▶ health::class, health::Alerts,
//!   rates of attempts ─────▶ speculation::Speed ──┘    which events and `muster workers` show
//!                            speculation::Rates ──▶ which attempts get a second one
//!   answers "slow down" ──▶ limits::Limits ──▶ how much workers may ask of the stores
//!   losses, recoveries ────▶ ramp::Ramp ──────────▶ when a lost task is given out again;
//!                                                   whether new jobs are refused
//! ```
//!
//! Nothing here reads a clock, sends, journals or draws: the time comes in as `now_ms`
//! (milliseconds of one clock that never goes back, of one process), and what changed comes out as
//! a value. All of it is a leader's memory: a new leader begins afresh, which costs time but never
//! a promise. Settings come with each call, so that ten thousand workers do not hold ten thousand
//! copies.

pub mod absence;
pub mod breaker;
pub mod health;
pub mod limits;
pub mod phi;
pub mod ramp;
pub mod sliding;
pub mod speculation;
