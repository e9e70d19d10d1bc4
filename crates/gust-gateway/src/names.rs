//! Function names, ARNs and qualifiers as requests have them.

use gust_control::ids::{AliasName, FunctionName, Place, Qualifier, Target};

use crate::{error::ApiError, validate::Violations};

/// Longest name of a function with everything that may stand around it.
const FUNCTION_TEXT_BYTES_MAX: usize = 170;

/// Longest qualifier.
const QUALIFIER_BYTES_MAX: usize = 128;

/// The patterns, as AWS's model has them; they are shown in errors.
pub const FUNCTION_PATTERN: &str = r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?";
const QUALIFIER_PATTERN: &str = r"\$(LATEST(\.PUBLISHED)?)|[a-zA-Z0-9-_$]+";
/// Pattern of an alias's name.
pub const ALIAS_PATTERN: &str = "(?!^[0-9]+$)([a-zA-Z0-9-_]+)";

/// What a request's function name says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FunctionText<'a> {
    region: Option<&'a str>,
    account_id: Option<&'a str>,
    name: &'a str,
    qualifier: Option<&'a str>,
}

/// Takes a function's name apart: a name, a partial or a full ARN, with or without qualifier.
fn split(text: &str) -> Option<FunctionText<'_>> {
    let mut parts: Vec<&str> = text.split(':').collect();
    if parts.first() == Some(&"arn") {
        if parts.len() < 3 || !parts[1].starts_with("aws") || parts[2] != "lambda" {
            return None;
        }
        parts.drain(..3);
    }
    // What stands last is a name, whatever it looks like: a function may be called as a region is, or "function".
    let (region, rest) = match parts.as_slice() {
        [region, rest @ ..] if is_region(region) && !rest.is_empty() => (Some(*region), rest),
        rest => (None, rest),
    };
    let is_account_id = |part: &str| part.len() == 12 && part.bytes().all(|byte| byte.is_ascii_digit());
    let (account_id, rest) = match rest {
        [account_id, rest @ ..] if is_account_id(account_id) && !rest.is_empty() => (Some(*account_id), rest),
        rest => (None, rest),
    };
    let rest = match rest {
        ["function", rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    match rest {
        [name] => Some(FunctionText {
            region,
            account_id,
            name,
            qualifier: None,
        }),
        [name, qualifier] => Some(FunctionText {
            region,
            account_id,
            name,
            qualifier: Some(qualifier),
        }),
        _ => None,
    }
}

/// `(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}`, as in [`FUNCTION_PATTERN`].
fn is_region(text: &str) -> bool {
    let letters = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
    let parts: Vec<&str> = text.strip_prefix("eusc-").unwrap_or(text).split('-').collect();
    let (place, kind, direction, number) = match parts.as_slice() {
        [place, direction, number] => (place, None, direction, number),
        [place, kind, direction, number] => (place, Some(kind), direction, number),
        _ => return false,
    };
    let is_kind = |kind: &&str| {
        let of_isolated = |rest: &str| rest.is_empty() || (rest.len() == 1 && letters(rest));
        *kind == "gov" || kind.strip_prefix("iso").is_some_and(of_isolated)
    };
    place.len() == 2
        && letters(place)
        && kind.is_none_or(is_kind)
        && letters(direction)
        && number.len() == 1
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// The target of a request: the function's name from its path, and a qualifier from its query.
///
/// # Errors
/// A validation error when either is malformed, and "not found" when the ARN is of another place.
pub fn target(place: &Place, text: &str, qualifier: Option<&str>) -> Result<Target, ApiError> {
    let mut violations = Violations::default();
    let split = split(text).filter(|_| text.len() <= FUNCTION_TEXT_BYTES_MAX);
    let well_formed = |name: &&str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let Some(found) = split.filter(|found| well_formed(&found.name)) else {
        violations.pattern(text, "functionName", FUNCTION_PATTERN);
        violations.check()?;
        return Err(ApiError::internal("a malformed name was let through"));
    };
    if FunctionName::new(found.name).is_none() {
        violations.length_max(
            found.name,
            "functionName",
            gust_control::ids::FUNCTION_NAME_BYTES_MAX,
        );
    }
    let in_name = found.qualifier.map(|text| parse_qualifier(text, &mut violations));
    let in_query = qualifier.map(|text| parse_qualifier(text, &mut violations));
    violations.check()?;
    let name =
        FunctionName::new(found.name).ok_or_else(|| ApiError::internal("a long name was let through"))?;
    let qualifier = match (in_name.flatten(), in_query.flatten()) {
        (Some(in_name), Some(in_query)) if in_name != in_query => {
            return Err(ApiError::invalid_parameter(
                "The derived qualifier from the function name does not match the specified qualifier.",
            ));
        }
        (Some(qualifier), _) | (None, Some(qualifier)) => Some(qualifier),
        (None, None) => None,
    };
    let elsewhere = found.region.is_some_and(|region| region != place.region)
        || found
            .account_id
            .is_some_and(|account_id| account_id != place.account_id);
    if elsewhere {
        return Err(ApiError::function_not_found(text));
    }
    Ok(Target { name, qualifier })
}

/// The target of a request that may not have a qualifier in its name.
///
/// # Errors
/// As [`target`], and when there is a qualifier.
pub fn unqualified(place: &Place, text: &str) -> Result<FunctionName, ApiError> {
    let target = target(place, text, None)?;
    match target.qualifier {
        None => Ok(target.name),
        Some(Qualifier::Version(_) | Qualifier::Alias(_)) => Err(ApiError::invalid_parameter(format!(
            "This operation does not support a qualified function name, but got {text}"
        ))),
    }
}

fn parse_qualifier(text: &str, violations: &mut Violations) -> Option<Qualifier> {
    let qualifier = Qualifier::parse(text);
    if text.len() > QUALIFIER_BYTES_MAX {
        violations.length_max(text, "qualifier", QUALIFIER_BYTES_MAX);
    } else if qualifier.is_none() {
        violations.pattern(text, "qualifier", QUALIFIER_PATTERN);
    }
    qualifier
}

/// An alias's name.
///
/// # Errors
/// A validation error when it is none.
pub fn alias(text: &str) -> Result<AliasName, ApiError> {
    AliasName::new(text).ok_or_else(|| {
        let mut violations = Violations::default();
        violations.pattern(text, "name", ALIAS_PATTERN);
        violations.into_error()
    })
}

#[cfg(test)]
mod tests {
    use gust_control::ids::VersionNumber;
    use proptest::prelude::*;

    use super::*;

    fn place() -> Place {
        Place {
            region: "us-east-1".to_owned(),
            account_id: "000000000000".to_owned(),
        }
    }

    #[test]
    fn a_function_may_be_called_as_other_things_are() {
        for (text, name) in [
            ("json-hash-0", "json-hash-0"),
            ("us-east-1", "us-east-1"),
            ("us-east-1:us-east-1", "us-east-1"),
            ("000000000000", "000000000000"),
            ("json-hash-0:live", "json-hash-0"),
            ("function", "function"),
        ] {
            assert_eq!(
                target(&place(), text, None).unwrap().name.as_str(),
                name,
                "{text}"
            );
        }
        for region in [
            "us-east-1",
            "us-gov-west-1",
            "us-isob-east-1",
            "eusc-de-east-1",
            "ap-southeast-2",
        ] {
            assert!(is_region(region), "{region}");
        }
        for other in [
            "json-hash-0",
            "us-east",
            "us-east-12",
            "us-1",
            "us-else-east-1",
            "us--1",
            "us-isobb-east-1",
        ] {
            assert!(!is_region(other), "{other}");
        }
    }

    #[test]
    fn names_and_arns_lead_to_the_function() {
        let live = || Some(Qualifier::Alias(AliasName::new("live").unwrap()));
        let seven = || Some(Qualifier::Version(VersionNumber::Published(7)));
        for (text, query, qualifier) in [
            ("hello", None, None),
            ("hello:live", None, live()),
            ("hello:$LATEST", None, Some(Qualifier::LATEST)),
            ("hello", Some("7"), seven()),
            ("hello:7", Some("7"), seven()),
            ("function:hello", None, None),
            ("000000000000:function:hello", None, None),
            ("000000000000:hello:7", None, seven()),
            ("us-east-1:000000000000:function:hello", None, None),
            ("arn:aws:lambda:us-east-1:000000000000:function:hello", None, None),
            (
                "arn:aws:lambda:us-east-1:000000000000:function:hello:live",
                None,
                live(),
            ),
        ] {
            let target = target(&place(), text, query).unwrap();
            assert_eq!(
                (target.name.as_str(), target.qualifier),
                ("hello", qualifier),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_names_are_validation_errors() {
        let long = "x".repeat(65);
        for (text, query) in [
            ("", None),
            ("a b", None),
            ("a/b", None),
            ("../etc", None),
            ("arn:aws:s3:::bucket", None),
            ("arn:aws:lambda:us-east-1:000000000000:function:hello:1:2", None),
            ("hello:a b", None),
            ("hello", Some("a b")),
            ("hello", Some("$latest")),
            (&long, None),
        ] {
            let error = target(&place(), text, query).unwrap_err();
            assert_eq!(
                (error.code, error.status.as_u16()),
                ("ValidationException", 400),
                "{text}"
            );
        }
        let other = target(
            &place(),
            "arn:aws:lambda:eu-west-1:000000000000:function:hello",
            None,
        )
        .unwrap_err();
        assert_eq!(other.code, "ResourceNotFoundException");
        let both = target(&place(), "hello:1", Some("2")).unwrap_err();
        assert_eq!(both.code, "InvalidParameterValueException");
    }

    proptest! {
        #[test]
        fn hostile_names_never_panic(text in "\\PC{0,200}", query in proptest::option::of("\\PC{0,200}")) {
            drop(target(&place(), &text, query.as_deref()));
        }
    }
}
