//! Versions of NVIDIA's driver, as the least that an engine needs.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most numbers of a version: a driver's has three.
const NUMBERS_MAX: usize = 4;

/// A driver's version, as `580` or `580.65.06`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct DriverVersion {
    numbers: Vec<u32>,
    text: String,
}

/// A text that is no version.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no version of a driver, as 580 or 580.65.06")]
pub struct BadDriverVersion {
    text: String,
}

impl DriverVersion {
    /// Whether it is `least` or a later one. Numbers that one of the two lacks are 0.
    pub fn is_at_least(&self, least: &Self) -> bool {
        let number = |version: &Self, at: usize| version.numbers.get(at).copied().unwrap_or(0);
        let all = |version| (0..NUMBERS_MAX).map(move |at| number(version, at));
        all(self).ge(all(least))
    }
}

impl FromStr for DriverVersion {
    type Err = BadDriverVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadDriverVersion {
            text: text.to_owned(),
        };
        let number = |part: &str| {
            let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| part.parse().ok()).flatten()
        };
        let numbers: Option<Vec<u32>> = text.split('.').map(number).collect();
        let numbers = numbers.filter(|numbers| numbers.len() <= NUMBERS_MAX);
        Ok(Self {
            numbers: numbers.ok_or_else(bad)?,
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for DriverVersion {
    type Error = BadDriverVersion;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DriverVersion> for String {
    fn from(version: DriverVersion) -> Self {
        version.text
    }
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_number_by_number() {
        for (found, least, is_enough) in [
            ("580.65.06", "580", true),
            ("580", "580.0.0", true),
            ("580.65.06", "580.65.6", true),
            ("1000.1", "580", true),
            ("610.43", "580.65.06", true),
            ("580.65.05", "580.65.06", false),
            ("580", "580.1", false),
            ("570.211.01", "580", false),
        ] {
            let version = |text: &str| text.parse::<DriverVersion>().unwrap();
            let found_enough = version(found).is_at_least(&version(least));
            assert_eq!(found_enough, is_enough, "{found} and {least}");
        }
    }

    #[test]
    fn what_is_no_version_is_said() {
        for text in [
            "",
            "580.",
            ".5",
            "v580",
            "580-open",
            "1.2.3.4.5",
            "+1",
            "99999999999",
        ] {
            let error = text.parse::<DriverVersion>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{text:?} is no version")),
                "{error}"
            );
        }
        let kept = "580.65.06".parse::<DriverVersion>().unwrap();
        assert_eq!(kept.to_string(), "580.65.06");
    }
}
