//! Where NATS is, by the conventions of its users: the flag, else the `NATS_*` environment, else a
//! context of the `nats` command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use muster_platform::adapters::nats::NatsSettings;
use muster_protocol::{Error, Result};
use serde::Deserialize;

use crate::args::NatsArgs;
use crate::environment;

/// Where servers listen if nobody says otherwise.
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

/// What is read of the environment.
const VARIABLES: [&str; 10] = [
    "NATS_URL",
    "NATS_CONTEXT",
    "NATS_USER",
    "NATS_PASSWORD",
    "NATS_CREDS",
    "NATS_NKEY",
    "NATS_CERT",
    "NATS_KEY",
    "NATS_CA",
    "NATS_INBOX_PREFIX",
];

/// Settings, and where they come from in words for the user.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) settings: NatsSettings,
    /// The name of the default context, where nothing more explicit was given.
    pub(crate) by_default_context: Option<String>,
}

/// A context file as the `nats` command line writes it; it has more fields than these.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    url: String,
    token: String,
    user: String,
    password: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    inbox_prefix: String,
    user_jwt: String,
    tls_first: bool,
}

/// The settings that the user has made; none where there are none.
pub(crate) fn find(args: &NatsArgs) -> Result<Option<Found>> {
    let mut variables = BTreeMap::new();
    for name in VARIABLES {
        variables.extend(environment::text(name)?.map(|value| (name, value)));
    }
    find_in(args, &|name| variables.get(name).cloned(), contexts_folder().as_deref())
}

/// The settings that the user has made, else a server on this machine.
pub(crate) fn find_or_default(args: &NatsArgs) -> Result<NatsSettings> {
    let default = || NatsSettings { url: DEFAULT_URL.to_owned(), ..NatsSettings::default() };
    Ok(find(args)?.map_or_else(default, |found| found.settings))
}

fn contexts_folder() -> Option<PathBuf> {
    let config =
        std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    config.or_else(home).map(|dir| dir.join("nats"))
}

fn find_in(
    args: &NatsArgs,
    env: &dyn Fn(&str) -> Option<String>,
    folder: Option<&Path>,
) -> Result<Option<Found>> {
    let explicit_url = args.nats.clone().or_else(|| env("NATS_URL"));
    let named = env("NATS_CONTEXT");
    let default_name = || {
        let text = std::fs::read_to_string(folder?.join("context.txt")).ok()?;
        Some(text.trim().to_owned()).filter(|name| !name.is_empty())
    };
    let mut by_default_context = None;
    let mut settings = if let Some(name) = &named {
        read_context(folder, name)?
    } else if explicit_url.is_none() {
        by_default_context = default_name();
        by_default_context
            .as_ref()
            .map(|name| read_context(folder, name))
            .transpose()?
            .unwrap_or_default()
    } else {
        NatsSettings::default()
    };
    if let Some(url) = explicit_url {
        settings.url = url;
    }
    lay_env_over(&mut settings, env);
    if settings.url.is_empty() {
        return Ok(None);
    }
    Ok(Some(Found { settings, by_default_context }))
}

fn lay_env_over(settings: &mut NatsSettings, env: &dyn Fn(&str) -> Option<String>) {
    if let Some(user) = env("NATS_USER") {
        match env("NATS_PASSWORD") {
            Some(password) => (settings.user, settings.password) = (Some(user), Some(password)),
            // As the nats command line has it: a user without a password is a token.
            None => settings.token = Some(user),
        }
    }
    let path = |name: &str| env(name).map(PathBuf::from);
    settings.creds = path("NATS_CREDS").or(settings.creds.take());
    settings.nkey = path("NATS_NKEY").or(settings.nkey.take());
    settings.cert = path("NATS_CERT").or(settings.cert.take());
    settings.key = path("NATS_KEY").or(settings.key.take());
    settings.ca = path("NATS_CA").or(settings.ca.take());
    settings.inbox_prefix = env("NATS_INBOX_PREFIX").or(settings.inbox_prefix.take());
}

fn read_context(folder: Option<&Path>, name: &str) -> Result<NatsSettings> {
    let sound = !name.contains(['/', '\\']) && !name.starts_with('.');
    let Some(folder) = folder.filter(|_| sound) else {
        return Err(Error::invalid(format!("the NATS context {name:?} cannot be looked up")));
    };
    let path = folder.join("context").join(format!("{name}.json"));
    let refuse = |why: String| {
        Error::invalid(format!("the NATS context {name} in {}: {why}", path.display()))
    };
    let text = std::fs::read_to_string(&path).map_err(|e| refuse(e.to_string()))?;
    let context: Context = serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))?;
    if !context.user_jwt.is_empty() {
        return Err(refuse("user_jwt is not supported; use a credentials file (creds)".to_owned()));
    }
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let file = |text: String| some(text).map(|text| expand_home(&text));
    Ok(NatsSettings {
        url: context.url,
        user: some(context.user),
        password: some(context.password),
        token: some(context.token),
        creds: file(context.creds),
        nkey: file(context.nkey),
        cert: file(context.cert),
        key: file(context.key),
        ca: file(context.ca),
        inbox_prefix: some(context.inbox_prefix),
        tls_first: context.tls_first,
        ..NatsSettings::default()
    })
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flag: Option<&str>, env: &[(&str, &str)], folder: Option<&Path>) -> Option<Found> {
        let args = NatsArgs { nats: flag.map(str::to_owned), namespace: None };
        let lookup = |name: &str| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        find_in(&args, &lookup, folder).expect("settings")
    }

    fn contexts() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("context")).expect("dir");
        let text = r#"{"description":"x","url":"nats://ctx:1",
            "user":"u","password":"p","tls_first":false}"#;
        std::fs::write(dir.path().join("context/dev.json"), text).expect("file");
        dir
    }

    #[test]
    fn nothing_set_means_nothing_found() {
        assert!(check(None, &[], None).is_none());
        assert!(check(None, &[("NATS_USER", "u")], None).is_none(), "a user alone names no server");
    }

    #[test]
    fn the_flag_goes_before_the_environment() {
        let found = check(
            Some("nats://flag:1"),
            &[
                ("NATS_URL", "nats://env:1"),
                ("NATS_USER", "u"),
                ("NATS_PASSWORD", "p"),
                ("NATS_INBOX_PREFIX", "_IN"),
            ],
            None,
        );
        let settings = found.expect("found").settings;
        assert_eq!((settings.url.as_str(), settings.user.as_deref()), ("nats://flag:1", Some("u")));
        assert_eq!(settings.inbox_prefix.as_deref(), Some("_IN"));
    }

    #[test]
    fn contexts_are_read() {
        let dir = contexts();
        let named = check(None, &[("NATS_CONTEXT", "dev")], Some(dir.path())).expect("found");
        assert_eq!((named.settings.url.as_str(), named.by_default_context), ("nats://ctx:1", None));
        assert!(check(None, &[], Some(dir.path())).is_none(), "no default context is chosen");
        std::fs::write(dir.path().join("context.txt"), "dev\n").expect("file");
        let default = check(None, &[], Some(dir.path())).expect("found");
        assert_eq!(default.by_default_context.as_deref(), Some("dev"));
    }

    #[test]
    fn a_broken_context_is_an_error_not_a_local_run() {
        let dir = contexts();
        let args = NatsArgs::default();
        let env = |name: &str| (name == "NATS_CONTEXT").then(|| "absent".to_owned());
        assert!(find_in(&args, &env, Some(dir.path())).is_err());
    }
}
