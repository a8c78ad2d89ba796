//! A bucket that speaks S3, through `object_store`.
//!
//! Endpoint and credentials come from the usual `AWS_*` environment; requests are path-style, and plain http is allowed where the endpoint says `http://`. Payloads are not
//! signed (`AWS_UNSIGNED_PAYLOAD=false` brings that back): SHA-256 on both sides costs more than sorting, and runs, pointers and parts carry checksums of their own.
//! Only what MinIO, SeaweedFS, Garage and AWS all do is used: PUT, ranged GET, HEAD, list, delete and multipart uploads.

use std::ops::Range;
use std::sync::Once;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};

use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt};

mod uploads;

/// One bucket. `Debug` shows its name alone: everything else is made of credentials.
pub struct S3Blobs {
    bucket: String,
    store: AmazonS3,
    uploads: uploads::Lister,
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
    /// A bucket, with everything else from the environment. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` where the settings do not make a client.
    pub fn from_env(bucket: &str, limits: &config::Store) -> Result<Self> {
        // Values that are no text cannot be settings of S3; they are left alone as the AWS tools leave them.
        Self::from_variables(
            bucket,
            limits,
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// A bucket, with everything else from `AWS_*` variables. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` where the settings do not make a client.
    pub fn from_variables(
        bucket: &str,
        limits: &config::Store,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        install_tls_provider();
        let known = |(name, value): (String, String)| {
            let key: AmazonS3ConfigKey = name.starts_with("AWS_").then(|| name.to_ascii_lowercase().parse().ok())??;
            Some((key, value))
        };
        let settings = variables.into_iter().filter_map(known);
        let from_env = settings.fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value));
        let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
            .iter()
            .find_map(|key| from_env.get_config_value(key))
            .unwrap_or_default();
        let place = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, rest)| rest);
        if place.split(['/', '?', '#']).next().is_some_and(|place| place.contains('@')) {
            return Err(Error::invalid(
                "AWS_ENDPOINT_URL has a user or password (not shown): S3 takes AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ));
        }
        let signed =
            from_env.get_config_value(&AmazonS3ConfigKey::UnsignedPayload).is_some_and(|value| value == "false");
        let options = ClientOptions::new()
            .with_timeout(Duration::from_millis(limits.request_timeout_ms))
            .with_connect_timeout(Duration::from_millis(limits.connect_timeout_ms))
            .with_allow_http(endpoint.starts_with("http://"));
        // What the client repeats by itself stays within the bound of a call; beyond it callers decide.
        let retry = RetryConfig {
            max_retries: limits.client_retries_max as usize,
            retry_timeout: Duration::from_millis(limits.call_timeout_ms / 2),
            ..RetryConfig::default()
        };
        let region = [AmazonS3ConfigKey::Region, AmazonS3ConfigKey::DefaultRegion]
            .iter()
            .find_map(|key| from_env.get_config_value(key));
        let uploads = uploads::Lister::new(bucket, &endpoint, region, &options)?;
        let store = from_env
            .with_bucket_name(bucket)
            .with_client_options(options)
            .with_retry(retry)
            .with_unsigned_payload(!signed)
            .build()
            .map_err(|e| {
                Error::invalid(format!("the S3 settings of the environment do not work for bucket {bucket}: {e}"))
            })?;
        Ok(Self { bucket: bucket.to_owned(), store, uploads })
    }

    fn path(&self, key: &str) -> Result<Path> {
        Path::parse(key).map_err(|e| Error::invalid(format!("s3://{}/{key}: not a usable key: {e}", self.bucket)))
    }

    fn error(&self, key: &str, doing: &str, error: &object_store::Error) -> Error {
        use object_store::Error as E;
        let text = chain(error);
        let denied = matches!(error, E::PermissionDenied { .. } | E::Unauthenticated { .. });
        // Only the body of an answer tells a missing bucket from a missing object, and not every call makes the same kind of error of it.
        let no_bucket = text.contains("NoSuchBucket");
        let text = match (denied, no_bucket) {
            (true, _) => format!("access denied; check the credentials and the rights of their user: {text}"),
            (_, true) => format!("there is no bucket {}: {text}", self.bucket),
            _ => text,
        };
        let kind = match error {
            _ if no_bucket => ErrorKind::Invalid,
            E::NotFound { .. } => ErrorKind::NotFound,
            E::PermissionDenied { .. }
            | E::Unauthenticated { .. }
            | E::InvalidPath { .. }
            | E::UnknownConfigurationKey { .. } => ErrorKind::Invalid,
            E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Bug,
            _ if asks_for_less(&text) => ErrorKind::Throttled,
            _ => ErrorKind::Retry,
        };
        Error::new(kind, format!("cannot {doing} s3://{}/{key}: {text}", self.bucket))
    }
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

/// Whether a server's answer means "slow down". `object_store` keeps the status private, so its words are read.
fn asks_for_less(text: &str) -> bool {
    ["status code: 503", "status code: 429", "SlowDown", "TooManyRequests", "RequestLimitExceeded"]
        .iter()
        .any(|sign| text.contains(sign))
}

fn blob_meta(meta: ObjectMeta) -> BlobMeta {
    let version = meta.e_tag.unwrap_or_else(|| meta.last_modified.to_rfc3339());
    let modified_unix_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
    BlobMeta { key: meta.location.to_string(), bytes: meta.size, version, modified_unix_ms }
}

#[async_trait]
impl Blobs for S3Blobs {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        let path =
            if prefix.trim_matches('/').is_empty() { None } else { Some(self.path(prefix.trim_end_matches('/'))?) };
        let mut stream = self.store.list(path.as_ref());
        let mut found = Vec::new();
        while let Some(meta) = stream.try_next().await.map_err(|e| self.error(prefix, "list", &e))? {
            // Some tools mark a folder by an empty object whose key ends in a slash; it parses to the prefix itself.
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

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        let meta = self.store.head(&self.path(key)?).await.map_err(|e| self.error(key, "look at", &e))?;
        Ok(blob_meta(meta))
    }

    async fn read(&self, key: &str, range: Range<u64>, _access: Access) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let result = self.store.get_range(&self.path(key)?, range.clone()).await;
        let short = |seen: u64| {
            let place = format!("s3://{}/{key}", self.bucket);
            Error::corrupt(format!("{place} ends at {seen}, but bytes up to {} were asked for", range.end))
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
                // A range beyond the end and a passing fault look alike here; the object's size tells them apart.
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
        self.store.create_multipart(&self.path(key)?).await.map_err(|e| self.error(key, "open an upload to", &e))
    }

    async fn upload_part(&self, key: &str, upload: &str, at: PartAt, data: Bytes) -> Result<String> {
        let payload = PutPayload::from_bytes(data);
        let put = self.store.put_part(&self.path(key)?, &upload.to_owned(), at.index as usize, payload).await;
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
            // The upload is gone: it was completed before and the answer was lost, or it was aborted. What stands decides.
            Some(error) if error.kind == ErrorKind::NotFound => match self.head(key).await {
                Ok(meta) if meta.bytes == bytes => Ok(Completed::Unsure),
                _ => Err(error),
            },
            Some(error) => Err(error),
        }
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        match self.store.abort_multipart(&self.path(key)?, &upload.to_owned()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error(key, "abort the upload of", &e)),
        }
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        let prefix = prefix.trim_end_matches('/');
        let credential = self.store.credentials().get_credential().await;
        let credential = credential.map_err(|e| self.error(prefix, "list uploads below", &e))?;
        self.uploads.list(&credential, prefix, limit).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        match self.store.delete(&self.path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error(key, "remove", &e)),
        }
    }

    async fn prune(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Profile};

    fn made(endpoint: &str) -> Result<S3Blobs> {
        let limits = Config::profile(Profile::Testing).expect("settings").store;
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "a-key"),
            ("AWS_SECRET_ACCESS_KEY", "hidden"),
            ("AWS_SESSION_TOKEN", "hidden too"),
        ];
        S3Blobs::from_variables("bucket", &limits, variables.map(|(name, value)| (name.to_owned(), value.to_owned())))
    }

    #[tokio::test]
    async fn secrets_of_a_bucket_are_not_shown() {
        let blobs = made("http://127.0.0.1:1").expect("a client");
        assert_eq!(format!("{blobs:?}"), "S3Blobs { bucket: \"bucket\", .. }");
        let error = blobs.head("a").await.expect_err("nobody listens there");
        assert!(!error.message.contains("hidden") && error.message.contains("s3://bucket/a"), "{error}");
        let error = made("http://me:hidden@127.0.0.1:1").expect_err("a password in the endpoint");
        assert!(!error.message.contains("hidden") && error.message.contains("AWS_ENDPOINT_URL"), "{error}");
    }
}
