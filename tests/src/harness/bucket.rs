//! The tests' own hand on a bucket: plain blocking calls, with the rights of an administrator.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector,
};
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};
use tokio::runtime::{Builder, Runtime};

const REGION: &str = "us-east-1";

/// An access key and its secret.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The key's id.
    pub key: String,
    /// The secret.
    pub secret: String,
}

/// A bucket on a server with path-style addresses.
#[derive(Debug)]
pub struct Bucket {
    name: String,
    endpoint: String,
    credential: AwsCredential,
    store: Arc<AmazonS3>,
    http: HttpClient,
    runtime: Runtime,
}

impl Bucket {
    /// A hand on a bucket, whether it exists or not.
    ///
    /// # Panics
    /// Where the client cannot be made.
    pub fn new(endpoint: &str, name: &str, credentials: Credentials) -> Self {
        // The TLS library wants a provider even for plain http; another test in this process may
        // have set it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options =
            ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(20));
        let http =
            ReqwestConnector::default().connect(&options).expect("an http client can be made");
        // One quick retry: whoever waits for the server does so by itself.
        let backoff =
            BackoffConfig { init_backoff: Duration::from_millis(50), ..BackoffConfig::default() };
        let store = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_bucket_name(name)
            .with_region(REGION)
            .with_access_key_id(&credentials.key)
            .with_secret_access_key(&credentials.secret)
            .with_client_options(options)
            .with_retry(RetryConfig {
                backoff,
                max_retries: 1,
                retry_timeout: Duration::from_secs(20),
            })
            .build()
            .expect("an S3 client can be made");
        let credential =
            AwsCredential { key_id: credentials.key, secret_key: credentials.secret, token: None };
        let runtime =
            Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        Self {
            name: name.to_owned(),
            endpoint: endpoint.to_owned(),
            credential,
            store: Arc::new(store),
            http,
            runtime,
        }
    }

    /// `s3://bucket/key`.
    pub fn url(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.name)
    }

    /// Makes the bucket; false where the server does not (yet).
    pub fn try_create(&self) -> bool {
        self.call("PUT", "").is_ok_and(|(status, _)| status == 200 || status == 409)
    }

    /// Writes an object; false where the server does not (yet).
    pub fn try_put(&self, key: &str, bytes: &[u8]) -> bool {
        self.runtime
            .block_on(self.store.put(&Path::from(key), PutPayload::from(bytes.to_vec())))
            .is_ok()
    }

    /// Writes an object.
    ///
    /// # Panics
    /// Where it cannot.
    #[track_caller]
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let path = Path::from(key);
        let put = self.store.put(&path, PutPayload::from(bytes.to_vec()));
        self.runtime.block_on(put).unwrap_or_else(|e| panic!("put {}: {e}", self.url(key)));
    }

    /// Reads an object.
    ///
    /// # Panics
    /// Where it cannot.
    #[track_caller]
    pub fn get(&self, key: &str) -> Vec<u8> {
        let get = async { self.store.get(&Path::from(key)).await?.bytes().await };
        self.runtime.block_on(get).unwrap_or_else(|e| panic!("get {}: {e}", self.url(key))).to_vec()
    }

    /// Removes an object.
    ///
    /// # Panics
    /// Where it cannot.
    #[track_caller]
    pub fn delete(&self, key: &str) {
        self.runtime
            .block_on(self.store.delete(&Path::from(key)))
            .unwrap_or_else(|e| panic!("delete {}: {e}", self.url(key)));
    }

    /// Keys of all objects below a prefix (all for an empty one), in order.
    ///
    /// # Panics
    /// Where they cannot be listed.
    #[track_caller]
    pub fn list(&self, prefix: &str) -> Vec<String> {
        let prefix = (!prefix.is_empty()).then(|| Path::from(prefix));
        let listing = self
            .store
            .list(prefix.as_ref())
            .map(|found| found.map(|object| object.location.to_string()));
        let mut keys: Vec<String> = self
            .runtime
            .block_on(listing.collect::<Vec<_>>())
            .into_iter()
            .map(|key| key.unwrap_or_else(|e| panic!("list {}: {e}", self.url(""))))
            .collect();
        keys.sort();
        keys
    }

    /// Keys of the multipart uploads that were begun and neither completed nor aborted, as the
    /// server tells.
    ///
    /// # Panics
    /// Where it does not.
    #[track_caller]
    pub fn uploads(&self) -> Vec<String> {
        let (status, body) = self
            .call("GET", "?uploads=")
            .unwrap_or_else(|e| panic!("uploads of {}: {e}", self.url("")));
        assert_eq!(status, 200, "uploads of {}: {body}", self.url(""));
        assert!(body.contains("ListMultipartUploadsResult"), "uploads of {}: {body}", self.url(""));
        body.split("<Upload>")
            .skip(1)
            .map(|upload| between(upload, "<Key>", "</Key>").to_owned())
            .collect()
    }

    /// Begins an upload and leaves it open: for tests of the harness itself.
    ///
    /// # Panics
    /// Where it cannot.
    pub fn open_upload(&self, key: &str) {
        let (status, body) =
            self.call("POST", &format!("/{key}?uploads=")).expect("an upload can be begun");
        assert_eq!(status, 200, "begin upload: {body}");
    }

    /// Writes an object under a key that is escaped as in URLs, whatever bytes it has.
    ///
    /// # Panics
    /// Where it cannot.
    #[track_caller]
    pub fn put_escaped(&self, key: &str, bytes: &[u8]) {
        let body = PutPayload::from(bytes.to_vec()).into();
        let (status, body) =
            self.call_with("PUT", &format!("/{key}"), body).expect("an object can be written");
        assert_eq!(status, 200, "put {}: {body}", self.url(key));
    }

    /// One signed request to the bucket: the path and query follow its name.
    fn call(&self, method: &str, path_and_query: &str) -> Result<(u16, String), String> {
        self.call_with(method, path_and_query, HttpRequestBody::empty())
    }

    fn call_with(
        &self,
        method: &str,
        path_and_query: &str,
        body: HttpRequestBody,
    ) -> Result<(u16, String), String> {
        let mut request = HttpRequest::new(body);
        *request.method_mut() = method.parse().expect("a method");
        *request.uri_mut() =
            format!("{}/{}{path_and_query}", self.endpoint, self.name).parse().expect("a URL");
        AwsAuthorizer::new(&self.credential, "s3", REGION)
            .try_authorize(&mut request, None)
            .map_err(|e| e.to_string())?;
        self.runtime.block_on(async {
            let response = self.http.execute(request).await.map_err(|e| e.to_string())?;
            let status = response.status().as_u16();
            let mut stream = response.into_body().bytes_stream();
            let mut body = Vec::new();
            while let Some(chunk) = stream.next().await {
                body.extend_from_slice(&chunk.map_err(|e| e.to_string())?);
            }
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        })
    }
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    text.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map_or("", |(inner, _)| inner)
}
