//! What a replay prints.

use serde::Serialize;

use crate::commands::replay::oracle;
use crate::commands::replay::outcome::{Outcome, ratio};

/// The whole answer.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) trace: String,
    pub(crate) seed: u64,
    pub(crate) policies: Vec<Outcome>,
}

impl Report {
    /// One JSON object on one line.
    ///
    /// # Errors
    /// When a figure cannot be written.
    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        Ok(format!("{}\n", serde_json::to_string(self)?))
    }

    /// A table for people.
    pub(crate) fn table(&self) -> String {
        let head = [
            "policy",
            "hit rate",
            "of oracle",
            "ttft mean",
            "of oracle",
            "p50",
            "p99",
            "imbalance",
        ];
        let oracle = self.policies.iter().find(|o| o.policy == oracle::NAME);
        let of = |value: f64, best: fn(&Outcome) -> f64| {
            oracle.map_or("-".to_owned(), |o| format!("{:.3}", ratio(value, best(o))))
        };
        let row = |o: &Outcome| {
            [
                o.policy.clone(),
                format!("{:.1} %", o.hit_rate * 100.0),
                of(o.hit_rate, |oracle| oracle.hit_rate),
                format!("{:.1} ms", o.ttft_ms.mean),
                of(o.ttft_ms.mean, |oracle| oracle.ttft_ms.mean),
                format!("{:.1} ms", o.ttft_ms.p50),
                format!("{:.1} ms", o.ttft_ms.p99),
                format!("{:.2}", o.imbalance),
            ]
        };
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.policies.iter().map(row));
        let mut widths = [0; 8];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.len().max(*width);
            }
        }
        let line = |row: &[String; 8]| {
            let cells = row.iter().zip(widths).enumerate();
            let cells = cells.map(|(at, (cell, width))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            format!("{}\n", line.trim_end())
        };
        rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::replay::outcome::Ttft;

    fn outcome(policy: &str, hit_rate: f64, mean: f64) -> Outcome {
        Outcome {
            policy: policy.to_owned(),
            hit_rate,
            ttft_ms: Ttft {
                mean,
                p50: 90.0,
                p99: 1_000.0,
            },
            imbalance: 1.25,
            ttft: Vec::new(),
        }
    }

    #[test]
    fn the_table_compares_with_the_oracle() {
        let report = Report {
            trace: "t".to_owned(),
            seed: 7,
            policies: vec![outcome("kv", 0.45, 110.0), outcome("oracle", 0.5, 100.0)],
        };
        assert_eq!(
            report.table(),
            "policy  hit rate  of oracle  ttft mean  of oracle      p50        p99  imbalance\n\
             kv        45.0 %      0.900   110.0 ms      1.100  90.0 ms  1000.0 ms       1.25\n\
             oracle    50.0 %      1.000   100.0 ms      1.000  90.0 ms  1000.0 ms       1.25\n"
        );
        assert_eq!(
            report.json().unwrap(),
            "{\"trace\":\"t\",\"seed\":7,\"policies\":[\
             {\"policy\":\"kv\",\"hit_rate\":0.45,\"ttft_ms\":{\"mean\":110.0,\"p50\":90.0,\"p99\":1000.0},\"imbalance\":1.25},\
             {\"policy\":\"oracle\",\"hit_rate\":0.5,\"ttft_ms\":{\"mean\":100.0,\"p50\":90.0,\"p99\":1000.0},\"imbalance\":1.25}]}\n"
        );
    }
}
