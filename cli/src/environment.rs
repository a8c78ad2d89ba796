//! Variables of the environment as text. One that is passed over because it is none would mean
//! another server, or another deployment, than the user has named.

use muster_protocol::{Error, Result};

/// The value of a variable that is set to something.
///
/// # Errors
/// `Invalid` where it is no UTF-8.
pub(crate) fn text(name: &str) -> Result<Option<String>> {
    match std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(std::ffi::OsString::into_string)
    {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => Err(Error::invalid(format!("{name} is no UTF-8 text"))),
    }
}
