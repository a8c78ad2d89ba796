//! What the files of the AWS tools say (`~/.aws/config`, `~/.aws/credentials`): a profile's
//! credentials, its region and its endpoint.
//!
//! `aws-config` reads them as those tools do, and asks whom a profile names: a process, SSO, STS, a
//! metadata service. Which files and which profile, bounds, and the words of what goes wrong are
//! decided here. Nothing of a file's values is shown but names, regions and addresses.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::profile::{Profile as Section, ProfileFileCredentialsProvider, ProfileSet};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::ProvideCredentials;
use aws_runtime::env_config::file::{EnvConfigFileKind as Kind, EnvConfigFiles};
use aws_runtime::env_config::property::PropertiesKey;
use aws_smithy_runtime_api::client::http::{
    HttpClient as SmithyClient, HttpConnector as SmithyConnector, HttpConnectorFuture,
    HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{
    HttpRequest as SmithyRequest, HttpResponse as SmithyResponse,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_types::os_shim_internal::{Env, Fs};
use aws_types::region::Region;
use bytes::Bytes;
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, ReqwestConnector};
use tokio::io::AsyncReadExt;

use super::cached::{Loaded, Source};
use super::failure::{Cause, Failure, sources};
use super::http;
use super::settings::{Keys, Variables};
use muster_protocol::error::{Error, Result};

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Names of profiles that are told where one is missing.
const NAMES_TOLD_MAX: usize = 10;
/// Characters that are shown of what a process or a service says.
const TEXT_CHARS_MAX: usize = 400;
/// How long whoever gives credentials may take: a process may ask somebody, or a server.
const LOAD_TIMEOUT: Duration = Duration::from_secs(50);
const NAMES: [&str; 2] = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"];
/// The profile of those who name none.
const DEFAULT_NAME: &str = "default";
/// Settings by which a profile says where credentials come from.
const GIVES_CREDENTIALS: [&str; 10] = [
    "aws_access_key_id",
    "aws_secret_access_key",
    "credential_process",
    "credential_source",
    "login_session",
    "role_arn",
    "sso_account_id",
    "sso_session",
    "sso_start_url",
    "web_identity_token_file",
];

/// Which profile, of which files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The variable that names the profile, where one does.
    variable: Option<&'static str>,
    name: String,
    files: Vec<File>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    is_credentials: bool,
    /// The variable that names it, where one does.
    variable: Option<&'static str>,
    path: PathBuf,
}

/// A profile that is there.
#[derive(Clone)]
pub(super) struct Profile {
    name: String,
    sections: ProfileSet,
    texts: EnvConfigFiles,
}

/// It is made of credentials.
impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl File {
    fn kind(&self) -> Kind {
        if self.is_credentials { Kind::Credentials } else { Kind::Config }
    }

    /// Its text; none where it is not there, which the AWS tools take for an empty one.
    async fn read(&self) -> Result<Option<String>> {
        let path = self.path.display();
        let of = self.variable.map_or_else(String::new, |name| format!(" ({name})"));
        let refuse = |why: String| Error::setup(format!("cannot read {path}{of}: {why}"));
        let meta = match tokio::fs::metadata(&self.path).await {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if let Some(name) = self.variable {
                    tracing::warn!("{name} names {path}, which is not there");
                }
                return Ok(None);
            }
            Err(error) => return Err(refuse(error.to_string())),
        };
        if self.path == Path::new("/dev/null") {
            return Ok(None);
        }
        if !meta.is_file() {
            return Err(refuse("it is no regular file".to_owned()));
        }
        let mut text = Vec::new();
        let opened = tokio::fs::File::open(&self.path).await;
        let mut file = opened.map_err(|error| refuse(error.to_string()))?.take(FILE_BYTES_MAX + 1);
        file.read_to_end(&mut text).await.map_err(|error| refuse(error.to_string()))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(refuse(format!("it is longer than {FILE_BYTES_MAX} bytes")));
        }
        String::from_utf8(text).map(Some).map_err(|_| refuse("it is no UTF-8 text".to_owned()))
    }
}

impl Place {
    /// Where the environment says that they are.
    ///
    /// # Errors
    /// `Setup` where a variable is no text.
    pub(super) fn of(variables: &Variables) -> Result<Self> {
        let named = variables.first(&NAMES)?;
        let home = variables.get("HOME")?.map(Path::new);
        let mut files = Vec::new();
        for (variable, default, is_credentials) in [
            ("AWS_CONFIG_FILE", "config", false),
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials", true),
        ] {
            let (variable, path) = match (variables.get(variable)?, home) {
                (Some(path), home) => match (path.strip_prefix("~/"), home) {
                    (Some(rest), Some(home)) => (Some(variable), home.join(rest)),
                    _ => (Some(variable), PathBuf::from(path)),
                },
                (None, Some(home)) => (None, home.join(".aws").join(default)),
                (None, None) => continue,
            };
            files.push(File { is_credentials, variable, path });
        }
        let name = named.map_or(DEFAULT_NAME, |(_, name)| name).to_owned();
        Ok(Self { variable: named.map(|(variable, _)| variable), name, files })
    }

    fn unknown(&self, sections: Option<&ProfileSet>) -> Error {
        let Self { variable, name, files } = self;
        let paths: Vec<_> = files.iter().map(|file| file.path.display().to_string()).collect();
        let place = if paths.is_empty() {
            "any file, for HOME is not set".to_owned()
        } else {
            paths.join(" or ")
        };
        let mut known: Vec<&str> = sections.into_iter().flat_map(ProfileSet::profiles).collect();
        known.sort_unstable();
        let more = if known.len() > NAMES_TOLD_MAX { ", ..." } else { "" };
        known.truncate(NAMES_TOLD_MAX);
        let there = if known.is_empty() {
            "nor any other".to_owned()
        } else {
            format!("there are {}{more}", known.join(", "))
        };
        let by = variable.unwrap_or("AWS_PROFILE");
        Error::setup(format!("there is no AWS profile {name:?} ({by}) in {place}; {there}"))
    }
}

impl Profile {
    /// The profile; none where nobody has named one and the files have no default.
    ///
    /// # Errors
    /// `Setup` where the one that is named is not there, or a file cannot be read.
    pub(super) async fn read(place: &Place) -> Result<Option<Self>> {
        let (mut all, mut any) = (EnvConfigFiles::builder(), false);
        for file in &place.files {
            let Some(text) = file.read().await? else { continue };
            // Each alone at first: an error of both together does not say which it is.
            let alone = EnvConfigFiles::builder().with_contents(file.kind(), text.as_str()).build();
            let refuse = |why: String| {
                Error::setup(format!("the AWS tools could not read {}: {why}", file.path.display()))
            };
            sections(&alone, &place.name).await.map_err(|error| refuse(super::root(&error)))?;
            (all, any) = (all.with_contents(file.kind(), text), true);
        }
        if !any {
            return if place.variable.is_some() { Err(place.unknown(None)) } else { Ok(None) };
        }
        let texts = all.build();
        let sections = sections(&texts, &place.name)
            .await
            .map_err(|error| Error::setup(super::root(&error)))?;
        if sections.get_profile(&place.name).is_none() {
            return if place.variable.is_some() {
                Err(place.unknown(Some(&sections)))
            } else {
                Ok(None)
            };
        }
        Ok(Some(Self { name: place.name.clone(), sections, texts }))
    }

    /// A setting that is not empty, and how to name it in messages.
    pub(super) fn get(&self, setting: &str) -> Option<(String, &str)> {
        let value = self.sections.get(setting).filter(|value| !value.is_empty())?;
        Some((format!("{setting} of the AWS profile {:?}", self.name), value))
    }

    /// Where S3 is, as this profile has it: for S3 alone, else for all services.
    pub(super) fn endpoint(&self) -> Option<(String, &str)> {
        let (_, services) = self.get("services").unzip();
        let of_s3 = services.and_then(|services| {
            let key = PropertiesKey::builder().section_key("services").section_name(services);
            let key = key.property_name("s3").sub_property_name("endpoint_url").build().ok()?;
            let value = self.sections.other_sections().get(&key)?;
            Some((format!("endpoint_url of s3 in the AWS services {services:?}"), value.as_str()))
        });
        of_s3.or_else(|| self.get("endpoint_url"))
    }

    /// Whether it says where credentials come from.
    pub(super) fn gives_credentials(&self) -> bool {
        GIVES_CREDENTIALS.iter().any(|setting| self.sections.get(setting).is_some())
    }

    /// This profile and those whose credentials it takes.
    fn chain(&self) -> Vec<&Section> {
        let mut chain: Vec<&Section> = Vec::new();
        let mut next = Some(self.name.as_str());
        while let Some(section) = next.and_then(|name| self.sections.get_profile(name)) {
            if chain.iter().any(|seen| seen.name() == section.name()) {
                break;
            }
            chain.push(section);
            next = section.get("source_profile");
        }
        chain
    }

    fn says(&self, setting: &str) -> bool {
        self.chain().iter().any(|section| section.get(setting).is_some())
    }

    /// What a profile may ask for that cannot be done here, and what to do instead.
    fn beyond(&self) -> Option<String> {
        let what = if self.says("login_session") {
            "it takes the session of `aws login`, which muster does not read"
        } else if self.says("mfa_serial") {
            "it asks for a code (mfa_serial), for which muster cannot ask"
        } else {
            return None;
        };
        let profile = &self.name;
        Some(format!(
            "{what}; run: eval \"$(aws configure export-credentials --profile {profile} --format \
                env)\""
        ))
    }
}

async fn sections(
    texts: &EnvConfigFiles,
    name: &str,
) -> Result<ProfileSet, aws_config::profile::ProfileFileLoadError> {
    // Files and profile are given: nothing is taken from the environment here.
    let nothing = Env::from_slice(&[]);
    aws_config::profile::load(&Fs::real(), &nothing, texts, Some(Cow::Owned(name.to_owned()))).await
}

/// Credentials by a profile.
#[derive(Debug)]
pub(super) struct ByProfile {
    profile: Profile,
    config: ProviderConfig,
}

impl ByProfile {
    /// Asks whom the profile names, in this region where it names none, and by a client with these
    /// options.
    ///
    /// # Errors
    /// That of the http client, where it cannot be made.
    pub(super) fn new(
        profile: Profile,
        region: &str,
        options: ClientOptions,
    ) -> object_store::Result<Self> {
        // A metadata service is spoken to in the clear.
        let client = ReqwestConnector::default().connect(&options.with_allow_http(true))?;
        let config =
            ProviderConfig::without_region().with_region(Some(Region::new(region.to_owned())));
        Ok(Self { profile, config: config.with_http_client(Services { client }) })
    }

    fn failed(&self, error: &(dyn StdError + 'static)) -> Cause {
        if let Some(failure) = Failure::of(error) {
            return Cause::Profile {
                text: failure.to_string(),
                passing: failure.kind().is_passing(),
            };
        }
        let mut text = match error.source() {
            Some(_) => words(error),
            None => "its settings lead to none; a role_arn needs a source_profile or a \
                credential_source that has some"
                .to_owned(),
        };
        if self.profile.says("sso_session") || self.profile.says("sso_start_url") {
            text = format!("{text}; run: aws sso login --profile {}", self.profile.name);
        }
        Cause::Profile { text, passing: false }
    }
}

#[async_trait]
impl Source for ByProfile {
    fn whence(&self) -> String {
        format!("the AWS profile {:?}", self.profile.name)
    }

    async fn load(&self) -> Result<Loaded, Cause> {
        let refused = |text: String| Cause::Profile { text, passing: false };
        if let Some(why) = self.profile.beyond() {
            return Err(refused(why));
        }
        // Made anew each time: one that has failed gives its error once, and goes on failing.
        let provider = ProfileFileCredentialsProvider::builder()
            .configure(&self.config)
            .profile_files(self.profile.texts.clone())
            .profile_name(&self.profile.name)
            .build();
        let given = tokio::time::timeout(LOAD_TIMEOUT, provider.provide_credentials()).await;
        let given = given.map_err(|_| {
            refused(format!("whom it asks took longer than {} s", LOAD_TIMEOUT.as_secs()))
        })?;
        let given = given.map_err(|error| self.failed(&error))?;
        let keys = Keys {
            id: given.access_key_id().to_owned(),
            secret: given.secret_access_key().to_owned(),
            token: given.session_token().filter(|token| !token.is_empty()).map(str::to_owned),
        };
        keys.check(&self.whence()).map_err(|error| refused(error.message))?;
        let since =
            given.expiry().map(|at| at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default());
        let expires_unix_ms =
            since.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        Ok(Loaded { keys, expires_unix_ms })
    }
}

/// What an error says beyond that there is one, in one line of bounded length: part of it may be
/// what a process wrote.
fn words(error: &(dyn StdError + 'static)) -> String {
    let mut told: Vec<String> = Vec::new();
    for source in sources(error).skip(1) {
        let text = source.to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if !text.is_empty() && !told.iter().any(|before| before.contains(&text)) {
            told.push(text);
        }
    }
    let all = if told.is_empty() { error.to_string() } else { told.join(": ") };
    let shown: String = all.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect();
    if all.chars().count() > TEXT_CHARS_MAX { format!("{shown} ...") } else { shown }
}

/// Our http client, as the AWS crates ask for one.
#[derive(Debug, Clone)]
struct Services {
    client: HttpClient,
}

impl SmithyClient for Services {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl SmithyConnector for Services {
    fn call(&self, request: SmithyRequest) -> HttpConnectorFuture {
        let client = self.client.clone();
        HttpConnectorFuture::new(async move { ask(&client, request).await })
    }
}

async fn ask(
    client: &HttpClient,
    request: SmithyRequest,
) -> Result<SmithyResponse, ConnectorError> {
    let (parts, body) =
        request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?.into_parts();
    let body = body.bytes().map(Bytes::copy_from_slice);
    let body =
        body.ok_or_else(|| ConnectorError::user("the body of a request is no bytes".into()))?;
    let host = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
    let whom = format!("{}://{host}", parts.uri.scheme_str().unwrap_or("https"));
    let failed = |error: &HttpError| {
        let cause = Failure::of_transport(error, error.kind());
        let failure = Failure { whom: whom.clone(), cause, answered_before: false };
        // What is passing is asked again by the crate itself, a few times.
        match failure.kind().is_passing() {
            true => ConnectorError::io(failure.into()),
            false => ConnectorError::user(failure.into()),
        }
    };
    let response = client
        .execute(HttpRequest::from_parts(parts, body.into()))
        .await
        .map_err(|error| failed(&error))?;
    let (parts, body) = response.into_parts();
    let body = http::read(body).await.map_err(|error| failed(&error))?;
    let response = hyper::Response::from_parts(parts, SdkBody::from(body));
    SmithyResponse::try_from(response).map_err(|error| ConnectorError::other(error.into(), None))
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
