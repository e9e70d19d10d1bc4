//! Validation errors in AWS's words: every violated constraint of a request in one message.

use std::fmt::Display;

use crate::error::ApiError;

/// Violated constraints.
#[derive(Debug, Default)]
pub struct Violations(Vec<String>);

impl Violations {
    /// A member is missing.
    pub fn required(&mut self, present: bool, member: &str) {
        if !present {
            self.0.push(format!(
                "Value null at '{member}' failed to satisfy constraint: Member must not be null"
            ));
        }
    }

    /// A member must match a pattern and does not.
    pub fn pattern(&mut self, value: &str, member: &str, pattern: &str) {
        self.add(
            value,
            member,
            format!("Member must satisfy regular expression pattern: {pattern}"),
        );
    }

    /// A member may not be longer.
    pub fn length_max(&mut self, value: &str, member: &str, max: usize) {
        if value.len() > max {
            self.add(
                value,
                member,
                format!("Member must have length less than or equal to {max}"),
            );
        }
    }

    /// A member may not be shorter.
    pub fn length_min(&mut self, value: &str, member: &str, min: usize) {
        if value.len() < min {
            self.add(
                value,
                member,
                format!("Member must have length greater than or equal to {min}"),
            );
        }
    }

    /// A number must be in a range, bounds included.
    pub fn range(&mut self, value: Option<i64>, member: &str, min: u32, max: u32) {
        match value {
            Some(value) if value < i64::from(min) => {
                self.add(
                    value,
                    member,
                    format!("Member must have value greater than or equal to {min}"),
                );
            }
            Some(value) if value > i64::from(max) => {
                self.add(
                    value,
                    member,
                    format!("Member must have value less than or equal to {max}"),
                );
            }
            Some(_) | None => {}
        }
    }

    /// A member must be one of a set.
    pub fn one_of(&mut self, value: Option<&str>, member: &str, set: &[&str]) {
        if let Some(value) = value.filter(|value| !set.contains(value)) {
            self.add(
                value,
                member,
                format!("Member must satisfy enum value set: [{}]", set.join(", ")),
            );
        }
    }

    /// The error, if something is violated.
    ///
    /// # Errors
    /// That error.
    pub fn check(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(self.into_error())
        }
    }

    /// The error.
    pub fn into_error(self) -> ApiError {
        let count = self.0.len();
        let noun = if count == 1 { "error" } else { "errors" };
        ApiError::validation(format!(
            "{count} validation {noun} detected: {}",
            self.0.join("; ")
        ))
    }

    fn add(&mut self, value: impl Display, member: &str, constraint: String) {
        self.0.push(format!(
            "Value '{value}' at '{member}' failed to satisfy constraint: {constraint}"
        ));
    }
}

/// A number of a request as `u32`, once its range has been checked.
pub fn number(value: Option<i64>) -> Option<u32> {
    value.and_then(|value| u32::try_from(value).ok())
}
