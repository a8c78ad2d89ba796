//! How a setting is declared: once, with everything that is said of it.

/// What a setting is before anybody sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Flag(bool),
    Text(&'static str),
}

/// One setting of a section.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    /// What it does, in lines; one that has none shares what is said of the one above it.
    pub(super) about: &'static [&'static str],
    pub(super) default: Value,
    pub(super) in_development: Option<u64>,
    pub(super) in_testing: Option<u64>,
    pub(super) least: u64,
    pub(super) most: u64,
    /// Whether it is for those who know why.
    pub(super) is_expert: bool,
}

impl Setting {
    /// One that a user would touch.
    pub(super) const fn user(
        name: &'static str,
        about: &'static [&'static str],
        default: Value,
    ) -> Self {
        let (in_development, in_testing, least, most) = (None, None, 0, u64::MAX);
        let is_expert = false;
        Self { name, about, default, in_development, in_testing, least, most, is_expert }
    }

    /// One that is right as it is for nearly all.
    pub(super) const fn expert(
        name: &'static str,
        about: &'static [&'static str],
        default: Value,
    ) -> Self {
        Self { is_expert: true, ..Self::user(name, about, default) }
    }

    /// With this value in the development profile.
    pub(super) const fn development(self, value: u64) -> Self {
        Self { in_development: Some(value), ..self }
    }

    /// With this value in the testing profile.
    pub(super) const fn testing(self, value: u64) -> Self {
        Self { in_testing: Some(value), ..self }
    }

    /// Of at least so much.
    pub(super) const fn from(self, least: u64) -> Self {
        Self { least, ..self }
    }

    /// Of at most so much.
    pub(super) const fn to(self, most: u64) -> Self {
        Self { most, ..self }
    }
}

/// The settings below one header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    /// As in `[detector]`; empty for what stands above all headers.
    pub(super) path: &'static str,
    pub(super) about: &'static [&'static str],
    pub(super) settings: &'static [Setting],
}

/// A literal as a [`Value`].
macro_rules! value {
    (bool $value:literal) => {
        Value::Flag($value)
    };
    (str $value:literal) => {
        Value::Text($value)
    };
    ($number:ident $value:literal) => {
        Value::Number($value)
    };
}
pub(super) use value;

/// The settings of a [`Section`]: `LEVEL NAME: TYPE = DEFAULT [development N, testing N, from N, to
/// N];`, each part in brackets as needed.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])*
        $level:ident $name:ident: $kind:ident = $default:literal
            $([$($word:ident $bound:literal),+])?;
    )+) => {
        &[$(
            Setting::$level(stringify!($name), &[$($about),*], value!($kind $default))
                $($(.$word($bound))+)?
        ),+]
    };
}
pub(super) use settings;

/// A section that is a struct of its own.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $section:ident $path:literal
        $(
            $(#[doc = $doc:literal])*
            $level:ident $name:ident: $kind:ident = $default:literal
                $([$($word:ident $bound:literal),+])?;
        )+
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs, reason = "a setting without a remark shares the one above it")]
        pub struct $section { $($(#[doc = $doc])* pub $name: $kind),+ }

        impl $section {
            pub(super) const SECTION: Section = Section {
                path: $path,
                about: &[$($about),+],
                settings: settings! {
                    $(
                        $(#[doc = $doc])*
                        $level $name: $kind = $default $([$($word $bound),+])?;
                    )+
                },
            };
        }
    };
}
pub(super) use section;
