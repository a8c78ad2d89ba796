//! Lists open multipart uploads, which `object_store` cannot: one signed request a page, with its
//! signer and its http client.

use futures::StreamExt;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use serde::Deserialize;

use super::failure::Failure;
use crate::store::OpenUpload;
use muster_protocol::error::{Error, Result};

/// Largest page that is read, in bytes; a thousand entries take less than half of it.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// Lists the uploads of one bucket.
pub(super) struct Lister {
    bucket: String,
    /// URL of the bucket, without trailing slash.
    base: String,
    region: String,
    http: HttpClient,
}

/// One page, as S3 answers it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Page {
    is_truncated: bool,
    next_key_marker: String,
    next_upload_id_marker: String,
    #[serde(rename = "Upload")]
    uploads: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "Key")]
    key: String,
    #[serde(rename = "UploadId")]
    id: String,
}

impl Lister {
    pub(super) fn new(bucket: &str, base: String, region: String, http: HttpClient) -> Self {
        Self { bucket: bucket.to_owned(), base, region, http }
    }

    /// All uploads to keys that are the prefix or lie below it. Without a credential the requests
    /// are not signed.
    pub(super) async fn list(
        &self,
        credential: Option<&AwsCredential>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<OpenUpload>> {
        let inside = |key: &str| {
            prefix.is_empty()
                || key
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let (mut found, mut markers) = (Vec::new(), (String::new(), String::new()));
        loop {
            let page = self.page(credential, prefix, &markers).await?;
            let entries = page.uploads.into_iter().filter(|entry| inside(&entry.key));
            found.extend(entries.map(|entry| OpenUpload { key: entry.key, upload: entry.id }));
            if found.len() > limit {
                return Err(Error::exhausted(format!(
                    "more than {limit} uploads are open below s3://{}/{prefix}",
                    self.bucket
                )));
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            // A server that says "more" without saying where would be asked for ever.
            if !page.is_truncated || next.0.is_empty() || next == markers {
                found.sort();
                return Ok(found);
            }
            markers = next;
        }
    }

    fn page_url(&self, prefix: &str, markers: &(String, String)) -> String {
        let mut query = form_urlencoded::Serializer::new("uploads=".to_owned());
        query.append_pair("prefix", prefix);
        if !markers.0.is_empty() {
            query.append_pair("key-marker", &markers.0).append_pair("upload-id-marker", &markers.1);
        }
        // Signatures want %20 where forms write a plus.
        format!("{}?{}", self.base, query.finish().replace('+', "%20"))
    }

    async fn page(
        &self,
        credential: Option<&AwsCredential>,
        prefix: &str,
        markers: &(String, String),
    ) -> Result<Page> {
        let place = format!("cannot list uploads below s3://{}/{prefix}", self.bucket);
        let failed = |why: String| Error::retry(format!("{place}: {why}"));
        let url = self.page_url(prefix, markers);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() =
            url.parse().map_err(|e| Error::invalid(format!("{url} is no URL: {e}")))?;
        if let Some(credential) = credential {
            let signed = AwsAuthorizer::new(credential, "s3", &self.region)
                .try_authorize(&mut request, None);
            signed.map_err(|e| failed(e.to_string()))?;
        }
        let response = self.http.execute(request).await.map_err(|e| match Failure::of(&e) {
            Some(failure) => Error::new(failure.kind(), format!("{place}: {failure}")),
            None => failed(e.to_string()),
        })?;
        let mut body = Vec::new();
        let mut stream = response.into_body().bytes_stream();
        while let Some(chunk) = stream.next().await {
            body.extend_from_slice(&chunk.map_err(|e| failed(e.to_string()))?);
            if body.len() > PAGE_BYTES_MAX {
                return Err(Error::invalid(format!(
                    "{place}: the answer exceeds {PAGE_BYTES_MAX} bytes"
                )));
            }
        }
        let text = String::from_utf8_lossy(&body);
        quick_xml::de::from_str(&text).map_err(|e| Error::invalid(format!("{place}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read() {
        let text = "<?xml version=\"1.0\"?>\
                    <ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                    <Bucket>b</Bucket><IsTruncated>true</IsTruncated>\
                    <NextKeyMarker>k2</NextKeyMarker><NextUploadIdMarker>u2</NextUploadIdMarker>\
                    <Upload><Key>k1</Key><UploadId>u1</UploadId><Initiated>x</Initiated></Upload>\
                    <Upload><Key>k2</Key><UploadId>u2</UploadId></Upload>\
                    </ListMultipartUploadsResult>";
        let page: Page = quick_xml::de::from_str(text).expect("page");
        assert!(page.is_truncated);
        assert_eq!(
            page.uploads.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(),
            ["u1", "u2"]
        );
        let empty: Page =
            quick_xml::de::from_str("<ListMultipartUploadsResult></ListMultipartUploadsResult>")
                .expect("page");
        assert!(empty.uploads.is_empty() && !empty.is_truncated);
    }
}
