//! The journal: what it holds ([`record`]), how it is read back ([`fold`]) and how one leader at a time writes it ([`writer`]).

pub mod fold;
pub mod record;
pub mod writer;
