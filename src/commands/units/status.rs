//! All units of a host in one table.

use std::collections::HashMap;
use std::path::Path;

use crate::commands::units::files::names_in;
use crate::commands::units::install::{UNIT_DIR, WANTS};
use crate::commands::units::plan::{HostPlan, Unit};
use crate::commands::units::{UnitsError, init};
use crate::config::Config;
use crate::telemetry::causes::told;

/// What systemd is asked of each unit.
const PROPERTIES: &str =
    "Id,LoadState,ActiveState,SubState,Result,NRestarts,StateChangeTimestamp,StatusText";

const HEAD: [&str; 6] = ["UNIT", "STATE", "SINCE", "RESTARTS", "PORTS", "STATUS"];

/// Asks systemd once of all planned units; where the configuration is refused, of those that the target
/// wants as it is installed, under what is wrong with it.
///
/// # Errors
/// When systemd does not run here, or does not answer.
pub(crate) fn show(config: Result<Config, UnitsError>) -> Result<String, UnitsError> {
    if !init::is_running() {
        let instead = "ask on the host that runs the units";
        return Err(UnitsError::NoSystemd { instead });
    }
    let (head, plan) = match config {
        Ok(config) => (String::new(), HostPlan::new(&config)),
        Err(error) => {
            let installed = names_in(&Path::new(UNIT_DIR).join(WANTS))?;
            let text = format!("The configuration is refused: {}\n", told(&error));
            (text, HostPlan::of_names(installed))
        }
    };
    let names = plan.units.iter().map(|unit| unit.name.as_str());
    let args = ["show", "--no-pager", "--property", PROPERTIES, "--"];
    let args: Vec<_> = args.into_iter().chain([plan.target]).chain(names).collect();
    Ok(head + &table(&plan, &init::call("systemctl", &args)?))
}

/// The table, from what `systemctl show` says.
fn table(plan: &HostPlan, shown: &str) -> String {
    let units: Vec<Properties> = shown.split("\n\n").map(properties).collect();
    let find = |name: &str| {
        let of_unit = |unit: &&Properties| unit.get("Id") == Some(&name);
        units.iter().find(of_unit)
    };
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.push(row(plan.target, String::new(), find(plan.target)));
    rows.extend(
        plan.units
            .iter()
            .map(|unit| row(&unit.name, ports(unit), find(&unit.name))),
    );
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..HEAD.len()).map(|at| width(at).unwrap_or(0)).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

type Properties<'a> = HashMap<&'a str, &'a str>;

fn properties(block: &str) -> Properties<'_> {
    block
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect()
}

fn ports(unit: &Unit) -> String {
    let listens = unit.listens.values().map(ToString::to_string);
    listens.collect::<Vec<_>>().join(" ")
}

fn row(name: &str, ports: String, shown: Option<&Properties>) -> [String; 6] {
    let get = |key: &str| {
        shown
            .and_then(|shown| shown.get(key))
            .copied()
            .unwrap_or_default()
    };
    let state = match (get("LoadState"), get("ActiveState"), get("Result")) {
        ("" | "not-found", ..) => "not installed".to_owned(),
        (_, "failed", result) => format!("failed ({result})"),
        (_, state, _) => format!("{state} ({})", get("SubState")),
    };
    // As `Sat 2026-11-28 04:18:27 UTC`.
    let since: Vec<_> = get("StateChangeTimestamp")
        .split(' ')
        .skip(1)
        .take(2)
        .collect();
    [
        name.to_owned(),
        state,
        since.join(" "),
        get("NRestarts").to_owned(),
        ports,
        get("StatusText").to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::Part;

    #[test]
    fn a_unit_is_a_line_with_what_it_says_of_itself() {
        let mut config = Config::default();
        config.units.roles = vec![Part::Router, Part::Frontend];
        let shown = "Id=kvlens.target\nLoadState=loaded\nActiveState=active\nSubState=active\n\
                     StateChangeTimestamp=Sat 2026-11-28 04:18:27 UTC\n\n\
                     Id=kvlens-router.service\nLoadState=loaded\nActiveState=failed\nSubState=failed\n\
                     Result=exit-code\nNRestarts=0\nStateChangeTimestamp=Sat 2026-11-28 04:18:28 UTC\n\
                     StatusText=router: unknown key a=b\n\n\
                     Id=kvlens-frontend.socket\nLoadState=not-found\nActiveState=inactive\n\
                     SubState=dead\nStateChangeTimestamp=\n";
        let table = table(&HostPlan::new(&config), shown);
        let words = |text: &str| -> Vec<String> {
            let words = text.split_whitespace();
            words.map(str::to_owned).collect()
        };
        let lines: Vec<_> = table.lines().map(words).collect();
        for (at, line) in [
            "UNIT STATE SINCE RESTARTS PORTS STATUS",
            "kvlens.target active (active) 2026-11-28 04:18:27",
            "kvlens-router.service failed (exit-code) 2026-11-28 04:18:28 0 127.0.0.1:8300 router: \
             unknown key a=b",
            "kvlens-frontend.socket not installed 127.0.0.1:8000",
            "kvlens-frontend-admin.socket not installed 127.0.0.1:8001",
            "kvlens-frontend.service not installed 127.0.0.1:8001 127.0.0.1:8000",
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(lines[at], words(line), "{table}");
        }
    }
}
