//! Calls for keys that `object_store` does not take: with empty segments (`a//b`), a slash at the
//! end, or control characters. One such key would fail its whole listing.
//!
//! A key with a segment `.` or `..` cannot be asked for: `reqwest` takes a URL as the URL standard
//! has it, which folds such segments away, `%2e` as well, and the signer of `object_store` signs
//! what is left. So another object would be read. It takes a transport and a signer of one's own to
//! do better, as boto3 has them.

use std::ops::Range;

use bytes::Bytes;
use futures::StreamExt;
use hyper::header::{CONTENT_LENGTH, ETAG, HeaderValue, LAST_MODIFIED, RANGE};
use hyper::{Method, StatusCode};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody, HttpResponse};
use object_store::path::Path;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;

use super::failure::Failure;
use crate::store::BlobMeta;
use muster_protocol::error::{Error, ErrorKind, Result};

/// Largest page of a listing that is read, in bytes; a thousand keys of 1024 bytes, each byte
/// escaped, take less.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// What a key has in a URL as it is.
const IN_PATH: AsciiSet =
    NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
const IN_QUERY: AsciiSet = IN_PATH.add(b'/');

/// One bucket.
pub(super) struct Objects {
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
    next_continuation_token: String,
    encoding_type: String,
    contents: Vec<Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Entry {
    key: String,
    size: u64,
    #[serde(rename = "ETag")]
    etag: String,
}

/// Whether `object_store` asks for this very key.
pub(super) fn is_plain(key: &str) -> bool {
    Path::parse(key).is_ok_and(|path| path.as_ref() == key)
}

impl Objects {
    pub(super) fn new(bucket: &str, base: String, region: String, http: HttpClient) -> Self {
        Self { bucket: bucket.to_owned(), base, region, http }
    }

    /// Everything below a prefix, keys as they are; no more than `limit`. Objects without a tag
    /// have no version yet. Empty objects whose key ends in a slash mark folders, and are none.
    pub(super) async fn list(
        &self,
        credential: Option<&AwsCredential>,
        prefix: &str,
        limit: u64,
    ) -> Result<Vec<BlobMeta>> {
        let place = format!("cannot list s3://{}/{prefix}", self.bucket);
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let mut url =
                format!("{}?encoding-type=url&list-type=2&prefix={}", self.base, in_query(prefix));
            if !token.is_empty() {
                url = format!("{url}&continuation-token={}", in_query(&token));
            }
            let response = self.send(credential, Method::GET, &url, None, &place).await?;
            let body = body_of(response, PAGE_BYTES_MAX, &place).await?;
            let page: Page = quick_xml::de::from_str(&String::from_utf8_lossy(&body))
                .map_err(|e| Error::invalid(format!("{place}: {e}")))?;
            let escaped = page.encoding_type == "url";
            for Entry { key, size, etag } in page.contents {
                let key = if escaped { unescaped(&key) } else { key };
                if size > 0 || !key.ends_with('/') {
                    found.push(BlobMeta { key, bytes: size, version: etag, modified_unix_ms: 0 });
                }
            }
            if found.len() as u64 > limit {
                return Err(Error::invalid(format!(
                    "{place}: more than {limit} objects (store.entries_max)"
                )));
            }
            // A server that says "more" without saying where would be asked for ever.
            if !page.is_truncated
                || page.next_continuation_token.is_empty()
                || page.next_continuation_token == token
            {
                return Ok(found);
            }
            token = page.next_continuation_token;
        }
    }

    /// Size and version of an object.
    pub(super) async fn head(
        &self,
        credential: Option<&AwsCredential>,
        key: &str,
    ) -> Result<BlobMeta> {
        let place = format!("cannot look at s3://{}/{key}", self.bucket);
        let response =
            self.send(credential, Method::HEAD, &self.url_of(key, &place)?, None, &place).await?;
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let bytes = text(CONTENT_LENGTH).and_then(|text| text.parse().ok());
        let bytes =
            bytes.ok_or_else(|| Error::retry(format!("{place}: the answer has no length")))?;
        let modified = text(LAST_MODIFIED).and_then(|text| httpdate::parse_http_date(text).ok());
        let modified = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let version = text(ETAG).or(text(LAST_MODIFIED)).unwrap_or_default().to_owned();
        let modified_unix_ms =
            modified.and_then(|since| u64::try_from(since.as_millis()).ok()).unwrap_or(0);
        Ok(BlobMeta { key: key.to_owned(), bytes, version, modified_unix_ms })
    }

    /// Exactly the bytes of a range, which is not empty.
    pub(super) async fn read(
        &self,
        credential: Option<&AwsCredential>,
        key: &str,
        range: Range<u64>,
    ) -> Result<Bytes> {
        let place = format!("cannot read s3://{}/{key}", self.bucket);
        let wanted = range.end - range.start;
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let response = match self
            .send(credential, Method::GET, &self.url_of(key, &place)?, Some(&header), &place)
            .await
        {
            // The object ends before the range, or there is trouble; its size tells.
            Err(error) if matches!(error.kind, ErrorKind::Retry | ErrorKind::Invalid) => {
                let short =
                    self.head(credential, key).await.is_ok_and(|meta| meta.bytes < range.end);
                return Err(if short {
                    Error::new(ErrorKind::Corrupt, error.message)
                } else {
                    error
                });
            }
            response => response?,
        };
        // A server that passes over the range sends everything.
        let whole = response.status() != StatusCode::PARTIAL_CONTENT && range.start > 0;
        let most = usize::try_from(wanted).unwrap_or(usize::MAX);
        let body = if whole { Vec::new() } else { body_of(response, most, &place).await? };
        if whole || body.len() != most {
            let seen = body.len();
            return Err(Error::corrupt(format!(
                "{place}: {seen} bytes came for {header}, not {wanted}"
            )));
        }
        Ok(body.into())
    }

    fn url_of(&self, key: &str, place: &str) -> Result<String> {
        if key.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(Error::invalid(format!(
                "{place}: a key with . or .. segments cannot be asked for"
            )));
        }
        Ok(format!("{}/{}", self.base, utf8_percent_encode(key, &IN_PATH)))
    }

    async fn send(
        &self,
        credential: Option<&AwsCredential>,
        method: Method,
        url: &str,
        range: Option<&str>,
        place: &str,
    ) -> Result<HttpResponse> {
        let failed = |why: String| Error::retry(format!("{place}: {why}"));
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method;
        *request.uri_mut() =
            url.parse().map_err(|e| Error::invalid(format!("{url} is no URL: {e}")))?;
        if let Some(range) = range {
            let value =
                HeaderValue::from_str(range).map_err(|e| Error::bug(format!("{range}: {e}")))?;
            request.headers_mut().insert(RANGE, value);
        }
        if let Some(credential) = credential {
            let signed = AwsAuthorizer::new(credential, "s3", &self.region)
                .try_authorize(&mut request, None);
            signed.map_err(|e| failed(e.to_string()))?;
        }
        self.http.execute(request).await.map_err(|e| match Failure::of(&e) {
            Some(failure) => Error::new(failure.kind(), format!("{place}: {failure}")),
            None => failed(e.to_string()),
        })
    }
}

fn in_query(text: &str) -> String {
    utf8_percent_encode(text, &IN_QUERY).to_string()
}

/// A key as `encoding-type=url` writes it, where a blank may be a plus.
fn unescaped(key: &str) -> String {
    let blanks = key.replace('+', " ");
    percent_decode_str(&blanks).decode_utf8_lossy().into_owned()
}

async fn body_of(response: HttpResponse, bytes_max: usize, place: &str) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    let mut stream = response.into_body().bytes_stream();
    while let Some(chunk) = stream.next().await {
        body.extend_from_slice(&chunk.map_err(|e| Error::retry(format!("{place}: {e}")))?);
        if body.len() > bytes_max {
            return Err(Error::invalid(format!("{place}: the answer exceeds {bytes_max} bytes")));
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_as_they_are() {
        let text = "<?xml version=\"1.0\"?>\
                    <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                    <Name>b</Name><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
                    <NextContinuationToken>t+/=</NextContinuationToken>\
                    <Contents><Key>in/a%7Fb</Key><Size>3</Size><ETag>&quot;e1&quot;</ETag>\
                    <LastModified>x</LastModified></Contents>\
                    <Contents><Key>in//c+d%2Be%01</Key><Size>4</Size></Contents>\
                    </ListBucketResult>";
        let page: Page = quick_xml::de::from_str(text).expect("page");
        assert!(
            page.is_truncated
                && page.encoding_type == "url"
                && page.next_continuation_token == "t+/="
        );
        let keys: Vec<String> = page.contents.iter().map(|entry| unescaped(&entry.key)).collect();
        assert_eq!(keys, ["in/a\x7fb", "in//c d+e\x01"]);
        assert_eq!(page.contents[0].etag, "\"e1\"");
        let empty: Page =
            quick_xml::de::from_str("<ListBucketResult></ListBucketResult>").expect("page");
        assert!(empty.contents.is_empty() && !empty.is_truncated);
    }

    #[test]
    fn what_the_client_takes_is_left_to_it() {
        for (key, plain) in [
            ("a/b", true),
            ("a b", true),
            ("a//b", false),
            ("/a", false),
            ("a/", false),
            ("a\x7f", false),
            ("a/./b", false),
        ] {
            assert_eq!(is_plain(key), plain, "{key:?}");
        }
        assert_eq!(utf8_percent_encode("a//b\x7f c~", &IN_PATH).to_string(), "a//b%7F%20c~");
        assert_eq!(in_query("a/b+c"), "a%2Fb%2Bc");
    }
}
