//! What the environment says of S3, checked before a library sees it: some of them end in a panic
//! over a value that makes no URL or no header.
//!
//! An empty variable counts as none, as for the AWS tools. A value that cannot work is refused with
//! the variable's name; one that may be a secret is not shown.

use object_store::aws::AmazonS3ConfigKey as Key;
use reqwest::Url;

use super::profile::Profile;
use muster_protocol::error::{Error, Result};

/// Longest name of a region.
const REGION_BYTES_MAX: usize = 64;
/// Variables that say where S3 is, the first one that is set counts.
const ENDPOINTS: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
/// Variables that name a proxy, by the scheme of what is asked for; lower case is usual, too.
const HTTP_PROXIES: [&str; 3] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY"];
const HTTPS_PROXIES: [&str; 3] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"];
const ALL_PROXY: &str = "all_proxy";
/// The setting of a profile by which the endpoints that it names do not count.
const PASS_OVER: &str = "ignore_configured_endpoint_urls";

/// What S3 is reached with, as far as the environment says it, and after it a profile of the AWS
/// tools.
#[derive(Default)]
pub(super) struct Settings {
    /// URL of the service without trailing slash.
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) keys: Option<Keys>,
    /// Requests go out without credentials.
    pub(super) skip_signature: bool,
    pub(super) sign_payload: bool,
    /// The endpoint is the bucket's own.
    pub(super) virtual_hosted: bool,
    /// Where credentials come from that are not given here.
    pub(super) credentials: Vec<(Key, String)>,
    /// Whatever else the client takes.
    pub(super) others: Vec<(Key, String)>,
}

/// Credentials. They are not shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

/// Variables by their names; a value is none where it is no UTF-8.
pub(super) struct Variables(pub(super) Vec<(String, Option<String>)>);

impl Variables {
    /// The value of a variable that is set to something.
    ///
    /// # Errors
    /// `Setup` where it is no text.
    pub(super) fn get(&self, name: &str) -> Result<Option<&str>> {
        match self.0.iter().find(|(known, _)| known == name) {
            None => Ok(None),
            Some((_, None)) => Err(Error::setup(format!("{name} is no UTF-8 text"))),
            Some((_, Some(value))) => Ok(Some(value.as_str()).filter(|value| !value.is_empty())),
        }
    }

    /// The first of these variables that is set to something.
    ///
    /// # Errors
    /// As [`Variables::get`].
    pub(super) fn first(&self, names: &[&'static str]) -> Result<Option<(&'static str, &str)>> {
        for name in names {
            if let Some(value) = self.get(name)? {
                return Ok(Some((name, value)));
            }
        }
        Ok(None)
    }

    /// A switch, in the words that the AWS tools and object_store take.
    fn switch(&self, name: &str) -> Result<Option<bool>> {
        self.get(name)?.map(|value| check_switch(name, value)).transpose()
    }

    /// Whether something is left open that the files of the AWS tools may say. Where nothing is,
    /// they are not looked at.
    ///
    /// # Errors
    /// As [`Variables::get`].
    pub(super) fn leave_open(&self) -> Result<bool> {
        let keys = self.get("AWS_ACCESS_KEY_ID")?.is_some()
            || self.switch("AWS_SKIP_SIGNATURE")?.unwrap_or(false);
        Ok(!keys || self.first(&ENDPOINTS)?.is_none() || self.first(&REGIONS)?.is_none())
    }
}

fn check_switch(name: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" | "yes" | "y" => Ok(true),
        "0" | "false" | "off" | "no" | "n" => Ok(false),
        _ => Err(Error::setup(format!("{name}={value:?} is neither true nor false"))),
    }
}

impl Settings {
    /// Reads and checks them. What the environment says goes first, as with the AWS tools.
    ///
    /// # Errors
    /// `Setup`, naming the variable, or the setting of the profile.
    pub(super) fn read(variables: &Variables, profile: Option<&Profile>) -> Result<Self> {
        let endpoint = match variables.first(&ENDPOINTS)? {
            Some((name, text)) => Some(check_endpoint(name, text)?),
            None => endpoint_of(variables, profile)?,
        };
        let region =
            match (variables.first(&REGIONS)?, profile.and_then(|profile| profile.get("region"))) {
                (Some((name, text)), _) => Some(check_region(name, text)?),
                (None, Some((name, text))) => Some(check_region(&name, text)?),
                (None, None) => None,
            };
        let scheme =
            endpoint.as_deref().map_or("https", |url| url.split("://").next().unwrap_or_default());
        check_proxies(variables, scheme)?;
        let skip_signature = variables.switch("AWS_SKIP_SIGNATURE")?.unwrap_or(false);
        Ok(Self {
            endpoint,
            region,
            keys: keys(variables)?,
            skip_signature,
            sign_payload: !variables.switch("AWS_UNSIGNED_PAYLOAD")?.unwrap_or(true),
            virtual_hosted: variables.switch("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")?.unwrap_or(false),
            credentials: if skip_signature {
                Vec::new()
            } else {
                sources_of_credentials(variables)?
            },
            others: others(variables)?,
        })
    }
}

impl Settings {
    /// Whether the environment says that a role is taken on by a web identity.
    pub(super) fn has_web_identity(&self) -> bool {
        self.credentials.iter().any(|(key, _)| *key == Key::WebIdentityTokenFile)
    }
}

/// The endpoint that a profile names, unless it is to be passed over.
fn endpoint_of(variables: &Variables, profile: Option<&Profile>) -> Result<Option<String>> {
    let Some(profile) = profile else { return Ok(None) };
    let passed_over =
        match (variables.switch("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")?, profile.get(PASS_OVER)) {
            (Some(by_variable), _) => by_variable,
            (None, Some((name, text))) => check_switch(&name, text)?,
            (None, None) => false,
        };
    match profile.endpoint().filter(|_| !passed_over) {
        Some((name, text)) => check_endpoint(&name, text).map(Some),
        None => Ok(None),
    }
}

impl Keys {
    /// Checks what goes into headers. `of` says where it comes from.
    ///
    /// # Errors
    /// `Setup`, without showing anything of it.
    pub(super) fn check(&self, of: &str) -> Result<()> {
        let refuse = |what: &str, why: &str| {
            Err(Error::setup(format!(
                "the {what} of {of} {why} (it is not shown); was it copied whole, without quotes \
                    and line ends?"
            )))
        };
        for (what, text) in [
            ("access key", Some(&self.id)),
            ("secret key", Some(&self.secret)),
            ("session token", self.token.as_ref()),
        ] {
            let Some(text) = text else { continue };
            if text.is_empty() {
                return refuse(what, "is empty");
            }
            if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return refuse(what, "holds white space or a character that no such key has");
            }
        }
        if self.id.contains(['/', ',']) {
            return refuse("access key", "holds a slash or a comma, which no such key has");
        }
        Ok(())
    }
}

fn keys(variables: &Variables) -> Result<Option<Keys>> {
    let (id, secret) =
        (variables.get("AWS_ACCESS_KEY_ID")?, variables.get("AWS_SECRET_ACCESS_KEY")?);
    let token = variables.get("AWS_SESSION_TOKEN")?;
    let (id, secret) = match (id, secret) {
        (None, None) => return Ok(None),
        (Some(id), Some(secret)) => (id.to_owned(), secret.to_owned()),
        (Some(_), None) => {
            return Err(Error::setup("AWS_ACCESS_KEY_ID is set, but not AWS_SECRET_ACCESS_KEY"));
        }
        (None, Some(_)) => {
            return Err(Error::setup("AWS_SECRET_ACCESS_KEY is set, but not AWS_ACCESS_KEY_ID"));
        }
    };
    let keys = Keys { id, secret, token: token.map(str::to_owned) };
    keys.check("the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN)")?;
    Ok(Some(keys))
}

/// Where `object_store` looks for credentials that the environment does not hold.
fn sources_of_credentials(variables: &Variables) -> Result<Vec<(Key, String)>> {
    let mut sources = Vec::new();
    for (name, key) in [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", Key::WebIdentityTokenFile),
        ("AWS_ROLE_ARN", Key::RoleArn),
        ("AWS_ROLE_SESSION_NAME", Key::RoleSessionName),
        ("AWS_ENDPOINT_URL_STS", Key::StsEndpoint),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", Key::ContainerCredentialsRelativeUri),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", Key::ContainerCredentialsFullUri),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", Key::ContainerAuthorizationTokenFile),
        ("AWS_IMDSV1_FALLBACK", Key::ImdsV1Fallback),
        ("AWS_METADATA_ENDPOINT", Key::MetadataEndpoint),
    ] {
        let Some(value) = variables.get(name)? else { continue };
        let value = match key {
            Key::StsEndpoint | Key::ContainerCredentialsFullUri | Key::MetadataEndpoint => {
                check_endpoint(name, value)?
            }
            Key::ContainerCredentialsRelativeUri => {
                check_endpoint(name, &format!("http://169.254.170.2{value}"))?;
                value.to_owned()
            }
            Key::ImdsV1Fallback => variables.switch(name)?.unwrap_or(false).to_string(),
            _ => value.to_owned(),
        };
        sources.push((key, value));
    }
    Ok(sources)
}

/// Settings of `object_store` beyond those that are read here, or by whoever finds credentials.
fn others(variables: &Variables) -> Result<Vec<(Key, String)>> {
    let mut others = Vec::new();
    for (name, _) in &variables.0 {
        let key = name
            .starts_with("AWS_")
            .then(|| name.to_ascii_lowercase().parse::<Key>().ok())
            .flatten();
        let kept = matches!(
            key,
            Some(
                Key::S3Express
                    | Key::Checksum
                    | Key::DisableTagging
                    | Key::ConditionalPut
                    | Key::RequestPayer
                    | Key::Encryption(_)
            )
        );
        let (true, Some(key), Some(value)) = (kept, key, variables.get(name)?) else { continue };
        if !value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            return Err(Error::setup(format!("{name} holds a character that makes no request")));
        }
        others.push((key, value.to_owned()));
    }
    Ok(others)
}

/// A URL of a service: `http` or `https`, a host, perhaps a port and a path.
///
/// # Errors
/// `Setup`, naming `name`.
pub(super) fn check_endpoint(name: &str, text: &str) -> Result<String> {
    let place = text.split_once("://").map_or(text, |(_, rest)| rest);
    if place.split(['/', '?', '#']).next().is_some_and(|place| place.contains('@')) {
        return Err(Error::setup(format!(
            "{name} has a user or password (not shown): S3 takes AWS_ACCESS_KEY_ID and \
                AWS_SECRET_ACCESS_KEY"
        )));
    }
    let refuse = |why: String| Err(Error::setup(format!("{name}={text:?} {why}")));
    let Some((scheme, _)) = text.split_once("://") else {
        return refuse(format!("is no URL: write http://{place} or https://{place}"));
    };
    if !["http", "https"].contains(&scheme) {
        return refuse(format!("is no URL of S3: {scheme:?} is neither http nor https"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse("is no URL: it holds white space or characters beyond ASCII".to_owned());
    }
    // Two libraries read it, each in its own way.
    let url = match (Url::parse(text), text.parse::<hyper::Uri>()) {
        (Ok(url), Ok(uri)) if uri.authority().is_some() => url,
        (Err(error), _) => return refuse(format!("is no URL: {error}")),
        (_, Err(error)) => return refuse(format!("is no URL: {error}")),
        (Ok(_), Ok(_)) => return refuse("is no URL: it names no host".to_owned()),
    };
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("has a query or a fragment: name the service alone".to_owned());
    }
    if url.port() == Some(0) {
        return refuse("has port 0, on which nobody listens".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// A name of a region.
///
/// # Errors
/// `Setup`, naming `name`.
pub(super) fn check_region(name: &str, text: &str) -> Result<String> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.len() <= REGION_BYTES_MAX && text.bytes().all(sound) {
        return Ok(text.to_owned());
    }
    Err(Error::setup(format!(
        "{name}={text:?} is no region: one is made of a-z A-Z 0-9 - _ . (us-east-1)"
    )))
}

/// The http client passes over what it cannot read, and goes out without a proxy: whoever has set
/// one means it.
fn check_proxies(variables: &Variables, scheme: &str) -> Result<()> {
    // In a CGI program HTTP_PROXY is what somebody has sent as a header; the client leaves it alone
    // there.
    let cgi = variables.get("REQUEST_METHOD").is_ok_and(|method| method.is_some());
    let names = if scheme == "http" { HTTP_PROXIES } else { HTTPS_PROXIES };
    for name in names.into_iter().chain([ALL_PROXY]).filter(|name| !(cgi && *name == "HTTP_PROXY"))
    {
        let Some(text) = variables.get(name)? else { continue };
        check_proxy(name, text)?;
    }
    variables.first(&["NO_PROXY", "no_proxy"]).map(drop)
}

fn check_proxy(name: &str, text: &str) -> Result<()> {
    // It may hold a password.
    let refuse =
        |why: &str| Err(Error::setup(format!("{name} (not shown) {why}: write http://HOST:PORT")));
    let (scheme, _) = text.split_once("://").unwrap_or(("http", text));
    if !["http", "https"].contains(&scheme) {
        let known = ["socks4", "socks4a", "socks5", "socks5h"].contains(&scheme);
        return refuse(if known {
            "names a SOCKS proxy, which is not built in"
        } else {
            "is no URL of a proxy"
        });
    }
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    match (Url::parse(&full), text.parse::<hyper::Uri>()) {
        (Ok(url), Ok(uri)) if url.has_host() && uri.authority().is_some() => Ok(()),
        _ => refuse("is no URL of a proxy"),
    }
}

/// Of these variables, the one by whose proxy a URL is asked for, with the proxy's place; for
/// messages.
pub(super) fn proxy_of(endpoint: &str) -> Option<String> {
    let uri: hyper::Uri = endpoint.parse().ok()?;
    let proxy = hyper_util::client::proxy::matcher::Matcher::from_system().intercept(&uri)?;
    Some(proxy.uri().authority()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(variables: &[(&str, &str)]) -> Variables {
        Variables(
            variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())))
                .collect(),
        )
    }

    fn read(set: &[(&str, &str)]) -> Result<Settings> {
        Settings::read(&variables(set), None)
    }

    #[test]
    fn files_are_looked_at_only_for_what_is_open() {
        let open = |set: &[(&str, &str)]| variables(set).leave_open().expect("texts");
        let all =
            [("AWS_ACCESS_KEY_ID", "a"), ("AWS_ENDPOINT_URL", "http://s3"), ("AWS_REGION", "eu-1")];
        assert!(!open(&all));
        assert!(!open(&[("AWS_SKIP_SIGNATURE", "1"), all[1], ("AWS_DEFAULT_REGION", "eu-1")]));
        for left_out in 0..all.len() {
            let rest: Vec<_> = all
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != left_out)
                .map(|(_, set)| *set)
                .collect();
            assert!(open(&rest), "{rest:?}");
        }
    }

    #[test]
    fn what_cannot_be_an_endpoint_is_refused_by_the_name_of_its_variable() {
        for (text, words) in [
            ("127.0.0.1:9000", "write http://127.0.0.1:9000"),
            ("localhost", "write http://localhost"),
            ("/bucket", "is no URL"),
            ("ftp://host", "neither http nor https"),
            ("http://", "is no URL"),
            ("http://:9000", "is no URL"),
            ("http:///path", "is no URL"),
            ("http://ho st:9000", "white space"),
            ("http://host:9000\n", "white space"),
            (" http://host", "neither http nor https"),
            ("http://h\u{f6}st", "beyond ASCII"),
            ("http://host:99999", "is no URL"),
            ("http://host:0", "port 0"),
            ("http://host:port", "is no URL"),
            ("http://[::1", "is no URL"),
            ("http://host?a=b", "query"),
            ("http://host/#a", "query or a fragment"),
            ("http://a b@host", "not shown"),
            ("me:hidden@host:9000", "not shown"),
            ("http://%zz", "is no URL"),
        ] {
            for name in ENDPOINTS {
                let error =
                    read(&[(name, text)]).err().unwrap_or_else(|| panic!("{text:?} is taken"));
                assert!(
                    error.message.contains(words) && error.message.starts_with(name),
                    "{text:?}: {error}"
                );
                assert!(!error.message.contains("hidden"), "{error}");
            }
        }
        for (text, expected) in [
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("https://s3.example.com/", "https://s3.example.com"),
            ("http://[::1]:9000/base/", "http://[::1]:9000/base"),
        ] {
            assert_eq!(
                read(&[("AWS_ENDPOINT_URL", text)]).map(|s| s.endpoint).ok().flatten().as_deref(),
                Some(expected)
            );
        }
        let settings = read(&[("AWS_ENDPOINT_URL", ""), ("AWS_REGION", "")])
            .expect("empty ones count as none");
        assert!(settings.endpoint.is_none() && settings.region.is_none());
        let both =
            read(&[("AWS_ENDPOINT_URL", "http://all"), ("AWS_ENDPOINT_URL_S3", "http://s3")])
                .expect("settings");
        assert_eq!(
            both.endpoint.as_deref(),
            Some("http://s3"),
            "the one of the service goes first"
        );
    }

    #[test]
    fn keys_that_make_no_header_are_refused_and_not_shown() {
        let pair = |id, secret, token| {
            [
                ("AWS_ACCESS_KEY_ID", id),
                ("AWS_SECRET_ACCESS_KEY", secret),
                ("AWS_SESSION_TOKEN", token),
            ]
        };
        assert!(read(&pair("AKIA1", "s/e+c=r", "t/o+k==")).expect("settings").keys.is_some());
        assert!(
            read(&pair("", "", "hidden")).expect("settings").keys.is_none(),
            "a token alone is none"
        );
        for (id, secret, token, words) in [
            ("hidden\n", "s", "", "access key"),
            ("hid/den", "s", "", "access key"),
            ("hid,den", "s", "", "access key"),
            ("\u{e9}hidden", "s", "", "access key"),
            ("a", "hidden\r", "", "secret key"),
            ("a", " hidden", "", "secret key"),
            ("a", "s", "hidden\u{1}", "session token"),
            ("a", "s", "hidden token", "session token"),
            ("hidden", "", "", "AWS_SECRET_ACCESS_KEY"),
            ("", "hidden", "", "AWS_ACCESS_KEY_ID"),
        ] {
            let error = read(&pair(id, secret, token)).err().expect("refused");
            assert!(error.message.contains(words) && !error.message.contains("hidden"), "{error}");
        }
        let no_text =
            Settings::read(&Variables(vec![("AWS_SECRET_ACCESS_KEY".to_owned(), None)]), None)
                .err()
                .expect("refused");
        assert!(no_text.message.contains("AWS_SECRET_ACCESS_KEY is no UTF-8"), "{no_text}");
    }

    #[test]
    fn regions_switches_and_proxies_are_checked() {
        for (name, text) in [
            ("AWS_REGION", "us east"),
            ("AWS_DEFAULT_REGION", "a/b"),
            ("AWS_REGION", "\u{e9}"),
            ("AWS_SKIP_SIGNATURE", "maybe"),
            ("AWS_UNSIGNED_PAYLOAD", "2"),
            ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "x"),
            ("AWS_SSE_KMS_KEY_ID", "a\nb"),
            ("AWS_METADATA_ENDPOINT", "169.254.169.254"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "x y"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "x y"),
            ("AWS_ENDPOINT_URL_STS", "::"),
            ("HTTPS_PROXY", "::"),
            ("https_proxy", "http://"),
            ("ALL_PROXY", "ho st:1"),
            ("all_proxy", "socks5://host:1"),
            ("HTTPS_PROXY", "http://me:hidden@ho st"),
        ] {
            let error =
                read(&[(name, text)]).err().unwrap_or_else(|| panic!("{name}={text:?} is taken"));
            assert!(
                error.message.starts_with(name) && !error.message.contains("hidden"),
                "{error}"
            );
        }
        let plain = ("AWS_ENDPOINT_URL", "http://host");
        assert!(read(&[plain, ("HTTPS_PROXY", "::")]).is_ok(), "it is not asked for http");
        assert!(read(&[plain, ("HTTP_PROXY", "::")]).is_err());
        assert!(read(&[plain, ("HTTP_PROXY", "::"), ("REQUEST_METHOD", "GET")]).is_ok());
        for proxy in ["http://host:3128", "host:3128", "http://me:hidden@host", "https://[::1]:1"] {
            assert!(read(&[("HTTPS_PROXY", proxy), ("NO_PROXY", "%%%,::")]).is_ok(), "{proxy}");
        }
        let settings = read(&[("AWS_SKIP_SIGNATURE", "True"), ("AWS_UNSIGNED_PAYLOAD", "FALSE")])
            .expect("settings");
        assert!(settings.skip_signature && settings.sign_payload);
    }
}
