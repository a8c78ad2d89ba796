use std::fs;

use super::*;
use muster_protocol::error::ErrorKind;

/// A home with files of the AWS tools.
struct Home(tempfile::TempDir);

impl Home {
    fn new(config: &str, credentials: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join(".aws")).expect("a folder");
        for (name, text) in [("config", config), ("credentials", credentials)] {
            if !text.is_empty() {
                fs::write(dir.path().join(".aws").join(name), text).expect("a file");
            }
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn place(&self, set: &[(&str, &str)]) -> Place {
        let home = ("HOME".to_owned(), Some(self.path("")));
        let set = set.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())));
        Place::of(&Variables(set.chain([home]).collect())).expect("texts")
    }

    async fn read(&self, set: &[(&str, &str)]) -> Result<Option<Profile>> {
        Profile::read(&self.place(set)).await
    }

    async fn profile(&self, name: &str) -> Profile {
        self.read(&[("AWS_PROFILE", name)]).await.expect("it can be read").expect("it is there")
    }

    /// What a profile gives: key, secret and token, or why it gives nothing. No test asks a
    /// network.
    async fn keys(&self, name: &str) -> Result<(String, String, Option<String>), String> {
        super::super::install_tls_provider();
        let options = ClientOptions::new();
        let source =
            ByProfile::new(self.profile(name).await, "eu-north-1", options).expect("a client");
        match source.load().await {
            Ok(Loaded { keys: Keys { id, secret, token }, .. }) => Ok((id, secret, token)),
            Err(Cause::Profile { text, passing: false }) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }
}

const CONFIG: &str = "\
# What somebody has made.
[default]
region = eu-west-3

[profile dev]
region=us-west-2
endpoint_url = http://all:9000
services = local
aws_access_key_id = devkey
aws_secret_access_key = hidden

[profile plain]
endpoint_url = http://plain:9000

[profile made]
credential_process = printf '%s' '{\"Version\":1,\"AccessKeyId\":\"made\",\
                     \"SecretAccessKey\":\"hidden\",\"SessionToken\":\"t\"}'

[profile twice]
source_profile = twice
role_arn = arn:aws:iam::123456789012:role/a

[profile code]
source_profile = dev
role_arn = arn:aws:iam::123456789012:role/a
mfa_serial = arn:aws:iam::123456789012:mfa/me

[profile console]
login_session = arn:aws:iam::123456789012:user/me

[services local]
s3 =
  endpoint_url = http://s3:9000
";

fn value<'a>(found: &'a Option<(String, &'a str)>) -> Option<&'a str> {
    found.as_ref().map(|(_, value)| *value)
}

#[tokio::test]
async fn a_profile_is_read_as_the_aws_tools_read_it() {
    let home = Home::new(
        CONFIG,
        "[dev]\naws_access_key_id = from-credentials\naws_secret_access_key = hidden\n[other]\n",
    );
    let default = home.read(&[]).await.expect("it can be read").expect("it is there");
    assert_eq!(
        (value(&default.get("region")), value(&default.endpoint())),
        (Some("eu-west-3"), None)
    );
    assert!(!default.gives_credentials(), "a region is none");
    let dev = home.profile("dev").await;
    assert_eq!(
        (value(&dev.get("region")), value(&dev.endpoint())),
        (Some("us-west-2"), Some("http://s3:9000"))
    );
    assert_eq!(value(&home.profile("plain").await.endpoint()), Some("http://plain:9000"));
    assert!(dev.gives_credentials() && !format!("{dev:?}").contains("hidden"));
    let keys = home.keys("dev").await;
    assert_eq!(
        keys,
        Ok(("from-credentials".to_owned(), "hidden".to_owned(), None)),
        "the file of credentials goes first"
    );
    assert_eq!(
        home.keys("made").await,
        Ok(("made".to_owned(), "hidden".to_owned(), Some("t".to_owned())))
    );
    let by_default = home
        .read(&[("AWS_DEFAULT_PROFILE", "plain")])
        .await
        .expect("it can be read")
        .expect("it is there");
    assert_eq!(by_default.name, "plain");
    assert!(home.read(&[("AWS_PROFILE", "other")]).await.expect("it is in one file").is_some());
}

#[tokio::test]
async fn files_lie_where_the_environment_says() {
    let home = Home::new("[default]\nregion = at-home\n", "");
    fs::write(home.path("c"), "[profile x]\nregion = elsewhere\n").expect("a file");
    let config = home.path("c");
    for path in [config.as_str(), "~/c"] {
        let there = home
            .read(&[("AWS_CONFIG_FILE", path), ("AWS_PROFILE", "x")])
            .await
            .expect("it can be read");
        assert_eq!(value(&there.expect("it is there").get("region")), Some("elsewhere"), "{path}");
    }
    for nothing in [home.path("absent").as_str(), "/dev/null"] {
        assert!(
            home.read(&[("AWS_CONFIG_FILE", nothing)]).await.expect("an empty one").is_none(),
            "{nothing}"
        );
    }
    let nowhere = Place::of(&Variables(Vec::new())).expect("texts");
    assert!(nowhere.files.is_empty() && Profile::read(&nowhere).await.expect("nothing").is_none());
    assert!(Home::new("", "").read(&[]).await.expect("no files").is_none());
    assert!(Home::new("[profile a]\n", "").read(&[]).await.expect("no default").is_none());
}

#[tokio::test]
async fn what_a_file_cannot_say_is_refused_with_its_name() {
    let unknown = |error: Error, words: &[&str]| {
        assert_eq!(error.kind, ErrorKind::Setup);
        assert!(
            words.iter().all(|word| error.message.contains(word))
                && !error.message.contains("hidden"),
            "{error}"
        );
    };
    let home = Home::new(CONFIG, "");
    let error = home.read(&[("AWS_PROFILE", "dve")]).await.expect_err("unknown");
    unknown(
        error,
        &[
            "no AWS profile \"dve\"",
            "AWS_PROFILE",
            ".aws/config",
            "code, console, default, dev, made, plain",
        ],
    );
    let error =
        Home::new("", "").read(&[("AWS_DEFAULT_PROFILE", "a")]).await.expect_err("no files");
    unknown(error, &["no AWS profile \"a\"", "AWS_DEFAULT_PROFILE", "nor any other"]);
    for (text, words) in [
        ("region = a\n", "line 1"),
        ("[profile a]\nhidden\n", "line 2"),
        ("[profile a\n", "must end with"),
        ("[profile a]\n= hidden\n", "line 2"),
    ] {
        let error = Home::new(text, "[a]\n").read(&[("AWS_PROFILE", "a")]).await.expect_err(text);
        unknown(error, &[".aws/config", words]);
        let error = Home::new("[a]\n", text).read(&[("AWS_PROFILE", "a")]).await.expect_err(text);
        unknown(error, &[".aws/credentials", words]);
    }
    let odd = home.path("odd");
    fs::write(&odd, b"[default]\nregion = \xff\n").expect("a file");
    unknown(
        home.read(&[("AWS_CONFIG_FILE", odd.as_str())]).await.expect_err("no text"),
        &["AWS_CONFIG_FILE", "UTF-8"],
    );
    let folder = home.path(".aws");
    unknown(
        home.read(&[("AWS_CONFIG_FILE", folder.as_str())]).await.expect_err("a folder"),
        &["no regular file"],
    );
    let long = home.path("long");
    fs::write(&long, vec![b'#'; FILE_BYTES_MAX as usize + 1]).expect("a file");
    unknown(
        home.read(&[("AWS_CONFIG_FILE", long.as_str())]).await.expect_err("long"),
        &["longer than"],
    );
}

#[tokio::test]
async fn what_gives_no_credentials_says_why_and_what_to_do() {
    let login = "[profile in]\nsso_session = corp\nsso_account_id = 123456789012\n\
                 sso_role_name = r\n\
                 [profile role]\nrole_arn = arn:aws:iam::123456789012:role/a\nsource_profile = in\n\
                 [sso-session corp]\nsso_region = eu-west-1\n\
                 sso_start_url = https://example.com/start\n\
                 [profile lone]\nsso_session = absent\nsso_account_id = 1\nsso_role_name = r\n";
    let process = |command: &str| format!("[profile p]\ncredential_process = {command}\n");
    let long = format!("echo {} >&2; exit 3", "x".repeat(2_000));
    for (config, profile, words) in [
        (CONFIG.to_owned(), "twice", vec!["role_arn needs a source_profile"]),
        (
            CONFIG
                .replace("source_profile = dev", "source_profile = code")
                .replace("mfa_serial", "other"),
            "code",
            vec!["role_arn needs"],
        ),
        (
            "[profile a]\nrole_arn = r\nsource_profile = b\n\
             [profile b]\nrole_arn = r\nsource_profile = a\n"
                .to_owned(),
            "a",
            vec!["loop"],
        ),
        (CONFIG.to_owned(), "code", vec!["mfa_serial", "export-credentials --profile code"]),
        (CONFIG.to_owned(), "console", vec!["aws login", "export-credentials"]),
        (login.to_owned(), "in", vec!["aws sso login --profile in"]),
        (login.to_owned(), "role", vec!["aws sso login --profile role"]),
        (login.to_owned(), "lone", vec!["`absent`", "not found"]),
        (process("echo nobody is here >&2; exit 3"), "p", vec!["exit status: 3", "nobody is here"]),
        (process(&long), "p", vec!["xxxx ..."]),
        (process("/no/such/program"), "p", vec!["exit status: 127", "not found"]),
        (process("echo hidden"), "p", vec!["could not parse"]),
        (
            process(r#"printf '{"Version":2,"AccessKeyId":"hidden","SecretAccessKey":"hidden"}'"#),
            "p",
            vec!["version"],
        ),
        (
            process("printf '{\"Version\":1,\"AccessKeyId\":\"hidden\"}'"),
            "p",
            vec!["SecretAccessKey"],
        ),
        (
            process(r#"printf '{"Version":1,"AccessKeyId":"hid den","SecretAccessKey":"hidden"}'"#),
            "p",
            vec!["access key"],
        ),
        (process("printf '\\377'"), "p", vec!["UTF-8"]),
        (process("true"), "p", vec!["could not parse"]),
        (
            "[profile p]\naws_access_key_id = hidden\n".to_owned(),
            "p",
            vec!["aws_secret_access_key"],
        ),
    ] {
        let why = Home::new(&config, "").keys(profile).await.expect_err("nothing is given");
        assert!(words.iter().all(|word| why.contains(word)), "{profile}: {why}");
        assert!(
            !why.contains("hidden") && why.len() < 700 && !why.contains('\n'),
            "{profile}: \
            {why}"
        );
    }
}
