use super::*;

fn answer(status: u16, body: &str) -> Failure {
    let cause = Cause::Answer(Answer::new(status, body.as_bytes()));
    Failure { whom: "http://store".to_owned(), cause, answered_before: true }
}

fn xml(code: &str, more: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>Because of\n  that.</Message>\
         {more}<RequestId>4442587FB7D0A2F9</RequestId></Error>"
    )
}

#[test]
fn answers_are_told_apart_by_code_then_by_status() {
    use ErrorKind::{Invalid, NotFound, Retry, Setup, Throttled};
    for (status, code, kind, words) in [
        (400, "ExpiredToken", Setup, "the session token has expired"),
        (400, "InvalidToken", Setup, "AWS_SESSION_TOKEN"),
        (403, "InvalidAccessKeyId", Setup, "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", Setup, "AWS_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", Setup, "clock"),
        (301, "PermanentRedirect", Setup, "AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", Setup, "AWS_REGION"),
        (403, "AccessDenied", Invalid, "access denied"),
        (404, "NoSuchBucket", Invalid, "no such bucket"),
        (501, "NotImplemented", Invalid, "does not have this call"),
        (405, "MethodNotAllowed", Invalid, "does not have this call"),
        (400, "InvalidArgument", Invalid, "400 Bad Request"),
        (404, "NoSuchKey", NotFound, "404 Not Found"),
        (503, "SlowDown", Throttled, "fewer requests"),
        (503, "ServiceUnavailable", Throttled, "fewer requests"),
        (400, "RequestTimeout", Retry, "400 Bad Request"),
        (500, "InternalError", Retry, "500 Internal Server Error"),
        (409, "OperationAborted", Retry, "409 Conflict"),
    ] {
        let failure = answer(status, &xml(code, ""));
        let text = failure.to_string();
        assert_eq!(failure.kind(), kind, "{code}");
        assert!(
            text.contains(words) && text.contains(code) && text.contains("Because of that."),
            "{text}"
        );
        assert!(!text.contains('<') && !text.contains('\n') && !text.contains("4442587"), "{text}");
    }
    for (status, kind) in [
        (401, Invalid),
        (403, Invalid),
        (404, NotFound),
        (429, Throttled),
        (502, Retry),
        (504, Retry),
        (501, Invalid),
        (416, Retry),
        (307, Setup),
    ] {
        for body in ["", "<html><body>no\nS3</body></html>", "<Error>", "no S3"] {
            let failure = answer(status, body);
            assert_eq!(failure.kind(), kind, "{status} {body:?}");
            assert!(!failure.to_string().contains('<'), "{failure}");
        }
    }
    assert!(
        answer(400, "Client sent an HTTP request to an HTTPS server.\n")
            .to_string()
            .contains("an HTTPS server")
    );
}

#[test]
fn where_a_bucket_is_and_what_the_clock_says_is_named() {
    let failure = answer(400, &xml("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"));
    assert!(failure.to_string().contains("\"eu-west-1\"; set AWS_REGION"), "{failure}");
    for (ahead_s, words) in [(7260, "2h 1m ahead of"), (-86_400, "1day behind")] {
        let answer = Answer { ahead_s: Some(ahead_s), ..Answer::new(403, b"") };
        let failure =
            Failure { whom: "a".to_owned(), cause: Cause::Answer(answer), answered_before: true };
        assert!(
            failure.kind() == ErrorKind::Setup && failure.to_string().contains(words),
            "{failure}"
        );
    }
    let answer = Answer { ahead_s: Some(3), ..Answer::new(403, b"") };
    assert!(answer.is_mute() && answer.to_string().contains("access denied"), "{answer}");
}

#[test]
fn an_error_within_a_success_is_found() {
    for (body, expected) in [
        ("<?xml version=\"1.0\"?>\n\n<Error><Code>InternalError</Code></Error>", true),
        ("<Error xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"></Error>", true),
        ("<CompleteMultipartUploadResult><Error/></CompleteMultipartUploadResult>", false),
        ("", false),
        ("Error", false),
        ("<!-- <Error> -->", false),
        ("<", false),
    ] {
        assert_eq!(is_error_body(body.as_bytes()), expected, "{body}");
    }
}

#[test]
fn the_transport_is_told_by_types() {
    let io = |kind| io::Error::new(kind, "words");
    let tls = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    for (error, expected) in [
        (io(io::ErrorKind::ConnectionRefused), Cause::Unconnected { text: "words".to_owned() }),
        (
            io(io::ErrorKind::ConnectionReset),
            Cause::Broken { text: "words".to_owned(), greeting: false },
        ),
        (io(io::ErrorKind::TimedOut), Cause::TimedOut { connecting: true }),
        (
            tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)),
            Cause::NoTls,
        ),
        (io(io::ErrorKind::Other), Cause::Other { text: "words".to_owned() }),
    ] {
        assert_eq!(Failure::of_transport(&error, HttpErrorKind::Unknown), expected);
    }
    let certificate =
        tls(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer));
    assert!(matches!(
        Failure::of_transport(&certificate, HttpErrorKind::Connect),
        Cause::Tls { .. }
    ));
}

#[test]
fn what_worked_once_may_work_again() {
    let failure = |answered_before| {
        let cause = Cause::NameUnknown { host: "store".to_owned() };
        Failure { whom: "http://store".to_owned(), cause, answered_before }
    };
    assert_eq!([failure(false).kind(), failure(true).kind()], [ErrorKind::Setup, ErrorKind::Retry]);
    assert!(!failure(false).is_absence() && failure(true).is_absence());
    let found = HttpError::new(HttpErrorKind::Connect, failure(false));
    assert_eq!(Failure::of(&found), Some(&failure(false)));
}
