//! A bucket that speaks S3, through `object_store`.
//!
//! Endpoint and credentials come from the usual `AWS_*` environment, or from a profile of the AWS
//! tools; requests are path-style, and plain http is allowed where the endpoint says `http://`.
//! Payloads are not signed (`AWS_UNSIGNED_PAYLOAD=false` brings that back): SHA-256 on both sides
//! costs more than sorting, and runs, pointers and parts carry checksums of their own. Only what
//! MinIO, SeaweedFS, Garage and AWS all do is used: PUT, ranged GET, HEAD, list, delete and
//! multipart uploads.

use std::ops::Range;
use std::sync::{Arc, Once};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::client::HttpError;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, StaticCredentialProvider,
};

use crate::clock::SystemClock;
use crate::config;
use crate::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt, Troubles};
use crate::survey::{Survey, Wanted};
use cached::Cached;
use failure::{Cause, Failure};
use muster_protocol::error::{Error, ErrorKind, Result};
use profile::{ByProfile, Place, Profile};
use settings::{Keys, Settings, Variables};

mod cached;
mod credentials;
mod failure;
mod http;
mod names;
mod objects;
mod profile;
mod settings;
mod uploads;

/// Where AWS has buckets that nobody gave a region for.
const DEFAULT_REGION: &str = "us-east-1";

/// One bucket. `Debug` shows its name alone: everything else is made of credentials.
pub struct S3Blobs {
    bucket: String,
    /// Where it is, for messages.
    endpoint: String,
    store: AmazonS3,
    uploads: uploads::Lister,
    objects: objects::Objects,
    skip_signature: bool,
}

impl std::fmt::Debug for S3Blobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Blobs").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// Makes ring the process's TLS provider, once; the http client is built without one of its own.
fn install_tls_provider() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that the process has chosen a provider already, which serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

impl S3Blobs {
    /// A bucket, with everything else from the environment and the files that it names. Nothing is
    /// sent yet. Its absence is told to `troubles`.
    ///
    /// # Errors
    /// `Setup` where the settings do not make a client, naming the variable or the setting of a
    /// profile.
    pub async fn from_env(
        bucket: &str,
        limits: &config::Store,
        troubles: &Troubles,
    ) -> Result<Self> {
        // A name that is no text is none that anybody looks for.
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let variables = variables.map(|(name, value)| (name, value.into_string().ok())).collect();
        Self::of(bucket, limits, &Variables(variables), troubles).await
    }

    /// A bucket, with everything else from these variables, and the files that they name. Nothing
    /// is sent yet.
    ///
    /// # Errors
    /// As [`S3Blobs::from_env`].
    pub async fn from_variables(
        bucket: &str,
        limits: &config::Store,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let variables = variables.into_iter().map(|(name, value)| (name, Some(value))).collect();
        Self::of(bucket, limits, &Variables(variables), &Troubles::default()).await
    }

    async fn of(
        bucket: &str,
        limits: &config::Store,
        variables: &Variables,
        troubles: &Troubles,
    ) -> Result<Self> {
        install_tls_provider();
        let no_client = |e: object_store::Error| {
            Error::setup(format!(
                "the S3 settings of the environment do not work for bucket {bucket}: {}",
                chain(&e)
            ))
        };
        let profile = match variables.leave_open()? {
            true => Profile::read(&Place::of(variables)?).await?,
            false => None,
        };
        let settings = Settings::read(variables, profile.as_ref())?;
        let region = settings.region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let name = format!("s3://{bucket}");
        let profile =
            profile.filter(|profile| profile.gives_credentials() && !settings.has_web_identity());
        let credentials: AwsCredentialProvider = match (&settings.keys, profile) {
            (Some(Keys { id, secret, token }), _) => {
                let (key_id, secret_key, token) = (id.clone(), secret.clone(), token.clone());
                Arc::new(StaticCredentialProvider::new(AwsCredential { key_id, secret_key, token }))
            }
            (None, Some(profile)) => {
                let source = ByProfile::new(profile, &region, http::options("https://", limits))
                    .map_err(no_client)?;
                Arc::new(Cached::new(
                    source,
                    Arc::new(SystemClock::default()),
                    name.clone(),
                    troubles.clone(),
                ))
            }
            (None, None) => {
                Arc::new(credentials::elsewhere(&settings, &region).map_err(no_client)?)
            }
        };
        let Settings { endpoint, skip_signature, sign_payload, virtual_hosted, others, .. } =
            settings;
        let aws = |host: String| format!("https://{host}.{region}.amazonaws.com");
        let base = match (&endpoint, virtual_hosted) {
            (Some(endpoint), true) => endpoint.clone(),
            (Some(endpoint), false) => format!("{endpoint}/{bucket}"),
            (None, true) => aws(format!("{bucket}.s3")),
            (None, false) => format!("{}/{bucket}", aws("s3".to_owned())),
        };
        let place = endpoint.clone().unwrap_or_else(|| aws("s3".to_owned()));
        let options = http::options(&place, limits);
        let connector =
            http::Connector::new(name, &place, &options, troubles.clone()).map_err(no_client)?;
        // What the client repeats by itself stays within the bound of a call; beyond it callers
        // decide.
        let retry = RetryConfig {
            max_retries: limits.client_retries_max as usize,
            retry_timeout: Duration::from_millis(limits.call_timeout_ms / 2),
            ..RetryConfig::default()
        };
        let objects =
            objects::Objects::new(bucket, base.clone(), region.clone(), connector.client());
        let uploads = uploads::Lister::new(bucket, base, region.clone(), connector.client());
        let mut builder = AmazonS3Builder::new();
        for (key, value) in others {
            builder = builder.with_config(key, value);
        }
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let store = builder
            .with_bucket_name(bucket)
            .with_region(region)
            .with_credentials(credentials)
            .with_client_options(options)
            .with_http_connector(connector)
            .with_retry(retry)
            .with_unsigned_payload(!sign_payload)
            .with_skip_signature(skip_signature)
            .with_virtual_hosted_style_request(virtual_hosted)
            // Objects go one by one here, and not every store has the call for many.
            .with_disable_bulk_delete(true)
            .build()
            .map_err(no_client)?;
        Ok(Self {
            bucket: bucket.to_owned(),
            endpoint: place,
            store,
            uploads,
            objects,
            skip_signature,
        })
    }

    /// What requests of our own are signed with; none where nothing is signed.
    async fn credential(&self, key: &str, doing: &str) -> Result<Option<Arc<AwsCredential>>> {
        if self.skip_signature {
            return Ok(None);
        }
        let credential = self.store.credentials().get_credential().await;
        credential.map(Some).map_err(|e| self.error(key, doing, &e))
    }

    fn path(&self, key: &str) -> Result<Path> {
        Path::parse(key).map_err(|e| {
            Error::invalid(format!("s3://{}/{key}: not a usable key: {e}", self.bucket))
        })
    }

    /// What an error of the client comes of; none where no request has failed.
    fn failure(&self, error: &object_store::Error) -> Option<Failure> {
        if let Some(failure) = Failure::of(error) {
            return Some(failure.clone());
        }
        // An answer that broke off while it was read.
        let http = failure::sources(error).find_map(|source| source.downcast_ref::<HttpError>())?;
        let cause = Failure::of_transport(http, http.kind());
        Some(Failure { whom: self.endpoint.clone(), cause, answered_before: true })
    }

    fn error(&self, key: &str, doing: &str, error: &object_store::Error) -> Error {
        use object_store::Error as E;
        let place = format!("cannot {doing} s3://{}/{key}", self.bucket);
        if let Some(failure) = self.failure(error) {
            return Error::new(failure.kind(), format!("{place}: {failure}"));
        }
        let kind = match error {
            E::NotFound { .. } => ErrorKind::NotFound,
            E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => ErrorKind::Invalid,
            E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Bug,
            _ => ErrorKind::Retry,
        };
        Error::new(kind, format!("{place}: {}", chain(error)))
    }

    /// The error of a HEAD, whose answer has no body to say why: where it matters, a small GET is
    /// asked for one.
    async fn error_of_head(&self, key: &str, path: &Path, error: &object_store::Error) -> Error {
        let mute =
            |failure: &Failure| matches!(&failure.cause, Cause::Answer(answer) if answer.is_mute());
        if self.failure(error).is_some_and(|failure| mute(&failure))
            && let Err(told) = self.store.get_range(path, 0..1).await
            && self.failure(&told).is_some_and(|failure| matches!(failure.cause, Cause::Answer(_)))
        {
            return self.error(key, "look at", &told);
        }
        self.error(key, "look at", error)
    }
}

/// What an error comes of in the end, in one line.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let last = failure::sources(error).last().map(ToString::to_string).unwrap_or_default();
    last.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An error with its sources, in one line and without what repeats.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn blob_meta(meta: ObjectMeta) -> BlobMeta {
    let version = meta.e_tag.unwrap_or_else(|| meta.last_modified.to_rfc3339());
    let modified_unix_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
    BlobMeta { key: meta.location.to_string(), bytes: meta.size, version, modified_unix_ms }
}

#[async_trait]
impl Blobs for S3Blobs {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        let path = if prefix.trim_matches('/').is_empty() {
            None
        } else {
            Some(self.path(prefix.trim_end_matches('/'))?)
        };
        let mut stream = self.store.list(path.as_ref());
        let mut found = Vec::new();
        while let Some(meta) =
            stream.try_next().await.map_err(|e| self.error(prefix, "list", &e))?
        {
            // Some tools mark a folder by an empty object whose key ends in a slash; it parses to
            // the prefix itself.
            if path.as_ref() != Some(&meta.location) {
                found.push(blob_meta(meta));
            }
            if found.len() > limit {
                return Err(Error::exhausted(format!(
                    "more than {limit} objects lie below s3://{}/{prefix}",
                    self.bucket
                )));
            }
        }
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        let base = wanted.base();
        let prefix = if base.is_empty() { String::new() } else { format!("{base}/") };
        let credential = self.credential(base, "list").await?;
        let listed =
            self.objects.list(credential.as_deref(), &prefix, wanted.bounds().entries).await?;
        let mut survey = wanted.choose(listed)?;
        for meta in survey.objects.iter_mut().filter(|meta| meta.version.is_empty()) {
            *meta = self.head(&meta.key).await?;
        }
        Ok(survey)
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        if !objects::is_plain(key) {
            return self.objects.head(self.credential(key, "look at").await?.as_deref(), key).await;
        }
        let path = self.path(key)?;
        match self.store.head(&path).await {
            Ok(meta) => Ok(blob_meta(meta)),
            Err(error) => Err(self.error_of_head(key, &path, &error).await),
        }
    }

    async fn read(&self, key: &str, range: Range<u64>, _access: Access) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if !objects::is_plain(key) {
            return self
                .objects
                .read(self.credential(key, "read").await?.as_deref(), key, range)
                .await;
        }
        let result = self.store.get_range(&self.path(key)?, range.clone()).await;
        let short = |seen: u64| {
            let place = format!("s3://{}/{key}", self.bucket);
            Error::corrupt(format!(
                "{place} ends at {seen}, but bytes up to {} were asked for",
                range.end
            ))
        };
        match result {
            Ok(bytes) if bytes.len() as u64 == range.end - range.start => Ok(bytes),
            Ok(bytes) => Err(short(range.start + bytes.len() as u64)),
            Err(error) => {
                let error = self.error(key, "read", &error);
                // A throttling store is not asked for more.
                if error.kind != ErrorKind::Retry {
                    return Err(error);
                }
                // A range beyond the end and a passing fault look alike here; the object's size
                // tells them apart.
                match self.head(key).await {
                    Ok(meta) if meta.bytes < range.end => Err(short(meta.bytes)),
                    _ => Err(error),
                }
            }
        }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let put = self.store.put(&self.path(key)?, PutPayload::from_bytes(bytes)).await;
        put.map(drop).map_err(|e| self.error(key, "write", &e))
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        self.store
            .create_multipart(&self.path(key)?)
            .await
            .map_err(|e| self.error(key, "open an upload to", &e))
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        let payload = PutPayload::from_bytes(data);
        let put = self
            .store
            .put_part(&self.path(key)?, &upload.to_owned(), at.index as usize, payload)
            .await;
        put.map(|part| part.content_id).map_err(|e| self.error(key, "upload a part of", &e))
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        _sync: bool,
    ) -> Result<Completed> {
        let path = self.path(key)?;
        let parts = tags.iter().map(|tag| PartId { content_id: tag.clone() }).collect();
        let completed = self.store.complete_multipart(&path, &upload.to_owned(), parts).await;
        let failed = completed.err().map(|e| self.error(key, "complete the upload of", &e));
        match failed {
            None => Ok(Completed::Now),
            // The upload is gone: it was completed before and the answer was lost, or it was
            // aborted. What stands decides.
            Some(error) if error.kind == ErrorKind::NotFound => match self.head(key).await {
                Ok(meta) if meta.bytes == bytes => Ok(Completed::Unsure),
                _ => Err(error),
            },
            Some(error) => Err(error),
        }
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        let aborted = self.store.abort_multipart(&self.path(key)?, &upload.to_owned()).await;
        unless_gone(aborted.map_err(|e| self.error(key, "abort the upload of", &e)))
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        let prefix = prefix.trim_end_matches('/');
        let credential = self.credential(prefix, "list uploads below").await?;
        self.uploads.list(credential.as_deref(), prefix, limit).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let deleted = self.store.delete(&self.path(key)?).await;
        unless_gone(deleted.map_err(|e| self.error(key, "remove", &e)))
    }

    async fn prune(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }
}

/// What is gone need not go.
fn unless_gone(removed: Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Profile};

    async fn made(endpoint: &str) -> Result<S3Blobs> {
        let limits = Config::profile(Profile::Testing).expect("settings").store;
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "a-key"),
            ("AWS_SECRET_ACCESS_KEY", "hidden"),
            ("AWS_SESSION_TOKEN", "hidden+too"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        S3Blobs::from_variables("bucket", &limits, variables).await
    }

    #[tokio::test]
    async fn secrets_of_a_bucket_are_not_shown() {
        let blobs = made("http://127.0.0.1:1").await.expect("a client");
        assert_eq!(format!("{blobs:?}"), "S3Blobs { bucket: \"bucket\", .. }");
        let error = blobs.head("a").await.expect_err("nobody listens there");
        assert!(
            !error.message.contains("hidden") && error.message.contains("s3://bucket/a"),
            "{error}"
        );
        let error =
            made("http://me:hidden@127.0.0.1:1").await.expect_err("a password in the endpoint");
        assert!(
            !error.message.contains("hidden") && error.message.contains("AWS_ENDPOINT_URL"),
            "{error}"
        );
    }
}
