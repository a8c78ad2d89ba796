//! The journal: what it holds ([`record`]), how it is read back ([`replay`], [`fold`]) and how one
//! leader at a time writes it ([`writer`]).

pub mod fold;
pub mod record;
pub mod replay;
pub mod standing;
pub mod writer;
