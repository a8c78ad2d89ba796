//! What is sent or stored lives longer than the build that wrote it: each such thing is framed with
//! a version, and [`versions!`](crate::versions) lists the shape that it has in each.
//!
//! A frame is one version byte, then postcard. Postcard does not describe itself, so the shape of a
//! version never changes. To change a message, a plan or an entry of the journal:
//!
//! 1. copy the old shape, and what changes within it, into a module `v1` that is frozen from then
//!    on;
//! 2. say by [`Shape`] how each of the two becomes the other;
//! 3. list it as `Report: 2 = Report, 1 = v1::Report;`, and raise the constant of the version.
//!
//! Golden bytes (`golden.rs`, `journal/record/tests.rs`) hold every shape of every version.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// What is framed by version: each message between coordinator and workers, and what is stored.
pub trait Message: Sized {
    /// As a frame that a build reads which knows versions up to `peer`.
    ///
    /// # Errors
    /// `Invalid` where it cannot be said in that version; `Bug` where it cannot be serialised.
    fn to_frame(&self, peer: u8) -> Result<Vec<u8>>;

    /// From a frame of any version that this build understands.
    ///
    /// # Errors
    /// `Invalid` where it is malformed or of another version.
    fn from_frame(frame: &[u8]) -> Result<Self>;
}

/// A message as a version has it; most are in every version what the program works with.
pub trait Shape<T: Clone>: Clone + Serialize + DeserializeOwned {
    /// The message in this shape.
    ///
    /// # Errors
    /// `Invalid` where it has what this shape cannot say, and what must not be passed over.
    fn of(message: &T) -> Result<Cow<'_, Self>>;

    /// What it means to this build.
    fn lift(self) -> T;
}

impl<T: Clone + Serialize + DeserializeOwned> Shape<T> for T {
    fn of(message: &T) -> Result<Cow<'_, T>> {
        Ok(Cow::Borrowed(message))
    }

    fn lift(self) -> T {
        self
    }
}

/// Lists the shapes of messages, each with the version that brought it, the newest first.
#[macro_export]
macro_rules! versions {
    ($($message:ty: $($version:literal = $shape:ty),+;)+) => {$(
        impl $crate::wire::Message for $message {
            fn to_frame(&self, peer: u8) -> $crate::Result<Vec<u8>> {
                $(if peer >= $version {
                    let shape = <$shape as $crate::wire::Shape<Self>>::of(self)?;
                    return $crate::wire::frame($version, &*shape);
                })+
                Err($crate::Error::invalid(
                    format!("version {peer} has no {}", stringify!($message)),
                ))
            }

            fn from_frame(frame: &[u8]) -> $crate::Result<Self> {
                match frame.first() {
                    $(Some($version) => $crate::wire::unframe::<$shape>(frame)
                        .map(<$shape as $crate::wire::Shape<Self>>::lift),)+
                    version => Err($crate::wire::unknown(version, &[$($version),+])),
                }
            }
        }
    )+};
}

/// A value of each variant of an enum, with its name, for golden bytes: of all of them, or it does
/// not compile.
#[macro_export]
macro_rules! every {
    ($enum:ident { $($variant:ident $(($($inner:tt)*))? $({ $($field:tt)* })?),+ $(,)? }) => {{
        let all = vec![$((
            concat!(stringify!($enum), "::", stringify!($variant)),
            $enum::$variant $(($($inner)*))? $({ $($field)* })?,
        )),+];
        for (_, value) in &all {
            match value {
                $($enum::$variant { .. } => {}),+
            }
        }
        all
    }};
}

/// Messages that are in every version as they were in the first.
macro_rules! same_since_1 {
    ($($message:ty),+ $(,)?) => {
        $crate::versions! { $($message: 1 = $message;)+ }
    };
}
pub(crate) use same_since_1;

/// Frames a shape: its version, then postcard.
///
/// # Errors
/// `Bug` where it cannot be serialised.
pub fn frame<T: Serialize>(version: u8, shape: &T) -> Result<Vec<u8>> {
    postcard::to_extend(shape, vec![version])
        .map_err(|e| Error::bug(format!("cannot encode a message: {e}")))
}

/// Reads what [`frame`] wrote, of whatever version.
///
/// # Errors
/// `Invalid` where it is malformed, or where more bytes follow.
pub fn unframe<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match postcard::take_from_bytes(bytes.get(1..).unwrap_or_default()) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => {
            Err(Error::invalid(format!("{} bytes follow a message of {}", rest.len(), bytes.len())))
        }
        Err(e) => Err(Error::invalid(format!("a malformed message of {} bytes: {e}", bytes.len()))),
    }
}

/// What is wrong with a frame of another version than those listed, the newest first.
pub fn unknown(version: Option<&u8>, listed: &[u8]) -> Error {
    let Some(version) = version else { return Error::invalid("an empty message") };
    let known: Vec<String> = listed.iter().rev().map(u8::to_string).collect();
    let known = known.join(" and ");
    Error::invalid(format!("version {version}, but this build understands {known}"))
}

/// A frame for whoever may read it: of the oldest version, from `oldest` to `newest`, that can say
/// it.
///
/// # Errors
/// As [`Message::to_frame`], of the newest.
pub fn to_oldest_frame<T: Message>(message: &T, oldest: u8, newest: u8) -> Result<Vec<u8>> {
    let old = (oldest..newest).find_map(|version| message.to_frame(version).ok());
    old.map_or_else(|| message.to_frame(newest), Ok)
}

/// A field that other parts of the program go on changing: within postcard it is its JSON, which
/// names its fields. One that is new is optional, and left out where it says nothing; so what older
/// builds wrote stays readable, and a build that does not know it refuses it by name.
pub(crate) mod as_json {
    use serde::de::{DeserializeOwned, Error as _};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error as _};

    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&serde_json::to_string(value).map_err(S::Error::custom)?)
    }

    pub(crate) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        serde_json::from_str(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}
