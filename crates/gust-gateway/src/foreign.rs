//! Requests for other services of AWS: they come when a client is given this server as the endpoint of all services
//! (`AWS_ENDPOINT_URL`). Each is refused in the form that errors have in its protocol, so that the client can show why.

use hyper::{HeaderMap, header};

use crate::{auth::SERVICE, error::ApiError, sigv4::Claim};

/// Longest name of a service or of an operation that is repeated, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Services whose errors are XML whatever they are asked: those of the protocol `rest-xml`.
const XML_SERVICES: [&str; 4] = ["s3", "s3express", "route53", "cloudfront"];

/// What the body of an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// JSON, with the code in a header (`rest-json`): Lambda's.
    #[default]
    RestJson,
    /// JSON with the code in it (`json`): DynamoDB, CloudWatch Logs.
    Json,
    /// XML (`query`, `rest-xml`): IAM, STS, CloudFormation, S3.
    Xml,
}

/// The error for a request that is no operation of Lambda's.
pub fn refusal(headers: &HeaderMap, query: &str) -> ApiError {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let target = text(header::HeaderName::from_static("x-amz-target"));
    let kind = text(header::CONTENT_TYPE).unwrap_or_default();
    let is_query = kind.starts_with("application/x-www-form-urlencoded");
    let signed = Claim::find(headers, query).ok().map(|claim| claim.scope.service);
    let service = signed.filter(|service| service != SERVICE);
    let is_xml = is_query
        || service
            .as_deref()
            .is_some_and(|service| XML_SERVICES.contains(&service));
    let form = match (target, is_xml) {
        (Some(_), _) => Form::Json,
        (None, true) => Form::Xml,
        (None, false) if service.is_none() => return ApiError::unknown_operation(),
        (None, false) => Form::RestJson,
    };
    let asked = target.or(service.as_deref()).filter(|name| is_name(name));
    ApiError {
        form,
        ..ApiError::other_service(asked.unwrap_or("another service"))
    }
}

/// Nothing that would have to be escaped.
fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.len() <= NAME_BYTES_MAX && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&'static str, &str)], form: Form, asked: &str) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let error = refusal(&map, "");
        assert_eq!((error.form, error.code), (form, "UnknownOperationException"));
        assert!(error.message.contains(asked), "{}", error.message);
    }

    fn signed_for(service: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential=a/20261123/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=0"
        )
    }

    #[test]
    fn other_services_are_refused_in_their_own_form() {
        let (iam, s3, lambda) = (signed_for("iam"), signed_for("s3"), signed_for("lambda"));
        let (scheduler, odd) = (signed_for("scheduler"), signed_for("<b>"));
        let signed = |authorization| {
            [
                ("authorization", authorization),
                ("x-amz-date", "20261123T000000Z"),
            ]
        };
        let with = |authorization, more| [signed(authorization).as_slice(), &[more]].concat();
        let form = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        let target = ("x-amz-target", "Logs_20140328.FilterLogEvents");
        check(&with(&iam, form), Form::Xml, " iam");
        check(&signed(&s3), Form::Xml, " s3");
        check(&[form], Form::Xml, "another service");
        check(&[target], Form::Json, " Logs_20140328.FilterLogEvents");
        check(&signed(&scheduler), Form::RestJson, " scheduler");
        check(&with(&odd, form), Form::Xml, "another service");
        check(
            &signed(&lambda),
            Form::RestJson,
            "No operation of the AWS Lambda API",
        );
        check(&[], Form::RestJson, "No operation of the AWS Lambda API");
    }

    #[test]
    fn long_names_are_not_repeated() {
        check(
            &[("x-amz-target", &"x".repeat(NAME_BYTES_MAX + 1))],
            Form::Json,
            "another service",
        );
    }
}
