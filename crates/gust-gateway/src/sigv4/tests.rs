//! The first vectors are AWS's own signature test suite (`get-vanilla`, `post-vanilla`,
//! `get-vanilla-query-order-key-case`), the others were made with botocore's signer.

use hyper::header::HeaderValue;
use proptest::prelude::*;

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const TIMESTAMP: &str = "20150830T123600Z";

struct Case {
    method: Method,
    host: &'static str,
    path: &'static str,
    query: &'static str,
    body: &'static str,
    service: &'static str,
    signature: &'static str,
}

const AWS: &str = "example.amazonaws.com";
const INVOKE: &str =
    "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Ahello/invocations";

fn cases() -> [Case; 4] {
    let plain = |method, query, signature| Case {
        method,
        host: AWS,
        path: "/",
        query,
        body: "",
        service: "service",
        signature,
    };
    [
        plain(
            Method::GET,
            "",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        plain(
            Method::POST,
            "",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        plain(
            Method::GET,
            "Param2=value2&Param1=value1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        Case {
            method: Method::POST,
            host: "127.0.0.1:4566",
            path: INVOKE,
            query: "Qualifier=%24LATEST",
            body: "{\"a\": 1}",
            service: "lambda",
            signature: "f80b4c7af8eff93a33085061b7fb448f707bf652059f7aad8b3259a980556931",
        },
    ]
}

fn headers(host: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static(host));
    headers.insert("x-amz-date", HeaderValue::from_static(TIMESTAMP));
    headers
}

fn now() -> u64 {
    parse_timestamp(TIMESTAMP).unwrap()
}

fn claim(case: &Case) -> (HeaderMap, Claim) {
    let mut headers = headers(case.host);
    let authorization = format!(
        "{ALGORITHM} Credential=AKIDEXAMPLE/20150830/us-east-1/{}/aws4_request, SignedHeaders=host;x-amz-date, \
         Signature={}",
        case.service, case.signature
    );
    headers.insert("authorization", authorization.parse().unwrap());
    let claim = Claim::find(&headers, case.query).unwrap();
    (headers, claim)
}

fn signable<'a>(case: &'a Case, headers: &'a HeaderMap, body: &str) -> Signable<'a> {
    Signable {
        method: &case.method,
        path: case.path,
        query: case.query,
        headers,
        body_sha256: Sha256::digest(body).into(),
    }
}

#[test]
fn signatures_are_those_of_others() {
    for case in cases() {
        let (headers, claim) = claim(&case);
        let request = signable(&case, &headers, case.body);
        assert_eq!(
            sign(&request, SECRET, &claim.scope, TIMESTAMP, &claim.signed_headers),
            case.signature
        );
        assert_eq!(claim.verify(&request, SECRET, case.service, now()), Ok(()));
    }
}

#[test]
fn whatever_is_altered_breaks_the_signature() {
    for case in cases() {
        let (headers, claim) = claim(&case);
        let verify = |request: &Signable<'_>, secret| claim.verify(request, secret, case.service, now());
        let whole = signable(&case, &headers, case.body);
        let mut other_headers = headers.clone();
        other_headers.insert("host", HeaderValue::from_static("other"));
        for altered in [
            Signable {
                method: &Method::DELETE,
                ..whole
            },
            Signable {
                path: "/other",
                ..whole
            },
            Signable {
                query: "other=1",
                ..whole
            },
            Signable {
                headers: &other_headers,
                ..whole
            },
            signable(&case, &headers, "other"),
        ] {
            assert_eq!(
                verify(&altered, SECRET),
                Err(SignatureError::Mismatch),
                "{altered:?}"
            );
        }
        assert_eq!(verify(&whole, "other secret"), Err(SignatureError::Mismatch));
    }
}

#[test]
fn a_presigned_request_lives_as_long_as_it_says() {
    let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256\
        &X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Flambda%2Faws4_request\
        &X-Amz-Date=20150830T123600Z&X-Amz-Expires=600&X-Amz-SignedHeaders=host\
        &X-Amz-Signature=df53b81bf45116913a399bdd50cc74f22ebf406a37165f742b148c5faaee5871";
    let headers = headers("127.0.0.1:4566");
    let request = Signable {
        method: &Method::GET,
        path: "/2015-03-31/functions/hello",
        query,
        headers: &headers,
        body_sha256: Sha256::digest("").into(),
    };
    let claim = Claim::find(&headers, query).unwrap();
    assert_eq!(claim.verify(&request, SECRET, "lambda", now() + 599_000), Ok(()));
    let late = claim.verify(&request, SECRET, "lambda", now() + 601_000);
    assert!(
        late.unwrap_err()
            .to_string()
            .starts_with("Signature expired: 20150830T123600Z")
    );
}

#[test]
fn time_and_scope_must_fit() {
    let [case, ..] = cases();
    let (headers, claim) = claim(&case);
    let request = signable(&case, &headers, case.body);
    let check = |now, service, expected: &str| {
        let error = claim
            .verify(&request, SECRET, service, now)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(
        now() + 301_000,
        "service",
        "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z",
    );
    check(now() - 301_000, "service", "Signature not yet current");
    check(
        now(),
        "lambda",
        "Credential should be scoped to correct service: 'lambda'.",
    );
    let other_day = Claim {
        timestamp: "20150831T000000Z".to_owned(),
        ..claim.clone()
    };
    let error = other_day
        .verify(&request, SECRET, "service", now())
        .unwrap_err()
        .to_string();
    assert!(error.contains("'20150830' != '20150831'"), "{error}");
}

#[test]
fn incomplete_signatures_are_told_apart() {
    let find = |authorization: &str| {
        let mut headers = headers(AWS);
        headers.insert("authorization", authorization.parse().unwrap());
        Claim::find(&headers, "").unwrap_err()
    };
    assert_eq!(Claim::find(&headers(AWS), ""), Err(SignatureError::Missing));
    for (authorization, expected) in [
        ("Basic Zm9v", "Unsupported authorization algorithm"),
        (
            "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request, SignedHeaders=host",
            "requires 'Signature'",
        ),
        ("AWS4-HMAC-SHA256 Signature=0", "requires 'Credential' parameter"),
        (
            "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=0",
            "5 slash-delimited elements",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request, SignedHeaders=x, Signature=0",
            "'Host' must be",
        ),
    ] {
        let error = find(authorization);
        assert!(
            matches!(&error, SignatureError::Incomplete(text) if text.contains(expected)),
            "{error:?}"
        );
    }
}

proptest! {
    #[test]
    fn hostile_claims_never_panic(header in "\\PC{0,200}", query in "\\PC{0,200}") {
        let mut headers = headers(AWS);
        if let Ok(value) = format!("{ALGORITHM} {header}").parse() {
            headers.insert("authorization", value);
        }
        if let Ok(claim) = Claim::find(&headers, &query) {
            let request = Signable {
                method: &Method::GET, path: &header, query: &query, headers: &headers, body_sha256: [0; 32],
            };
            prop_assert!(claim.verify(&request, SECRET, "lambda", 0).is_err());
        }
    }
}
