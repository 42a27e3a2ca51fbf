//! All units of a host in one table.

use std::collections::BTreeMap;
use std::path::Path;

use crate::commands::units::install::{UNIT_DIR, wanted};
use crate::commands::units::plan::{HostPlan, Unit};
use crate::commands::units::{Report, UnitsError, init};
use crate::config::Config;

/// What systemd is asked of each unit.
const PROPERTIES: &str =
    "Id,LoadState,ActiveState,SubState,Result,NRestarts,StateChangeTimestamp,StatusText";

/// Units of ours that systemd knows of, planned or not.
const ALL: &str = "kvlens-*";
const TARGET: &str = "kvlens.target";

const HEAD: [&str; 6] = ["UNIT", "STATE", "SINCE", "RESTARTS", "PORTS", "STATUS"];

/// Asks systemd once of all planned units and of those that run beside them; where the configuration is
/// refused, of those that the target wants as it is installed.
///
/// # Errors
/// When systemd does not run here, or does not answer.
pub(crate) fn show(config: Result<Config, UnitsError>) -> Result<Report, UnitsError> {
    if !init::is_running() {
        let instead = "ask on the host that runs the units";
        return Err(UnitsError::NoSystemd { instead });
    }
    let (plan, refusal) = match config {
        Ok(config) => (Some(HostPlan::new(&config)), None),
        Err(error) => (None, Some(error)),
    };
    let names: Vec<_> = match &plan {
        Some(plan) => plan.units.iter().map(|unit| unit.name.clone()).collect(),
        None => wanted(Path::new(UNIT_DIR))?,
    };
    let args = ["show", "--no-pager", "--property", PROPERTIES, "--", TARGET];
    let names = names.iter().map(String::as_str).chain([ALL]);
    let args: Vec<_> = args.into_iter().chain(names).collect();
    let shown = init::call("systemctl", &args)?;
    let units = units(&shown);
    let text = table(&rows(plan.as_ref(), &units));
    Ok(match (plan, refusal) {
        (Some(plan), _) => Report {
            text: text + inference(&plan),
            fault: not_active(&plan, &units),
        },
        (None, fault) => Report { text, fault },
    })
}

/// What systemd says of units, by their names.
type Units<'a> = BTreeMap<&'a str, Properties<'a>>;
type Properties<'a> = BTreeMap<&'a str, &'a str>;

fn units(shown: &str) -> Units<'_> {
    let blocks = shown.split("\n\n").map(properties);
    let named = blocks.filter_map(|unit| Some((*unit.get("Id")?, unit)));
    named.collect()
}

fn properties(block: &str) -> Properties<'_> {
    block
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect()
}

fn get<'a>(unit: Option<&Properties<'a>>, key: &str) -> &'a str {
    unit.and_then(|unit| unit.get(key).copied())
        .unwrap_or_default()
}

/// The table: what is planned in its order, and then what runs or has failed and is not. Without a plan
/// nothing is said of that.
fn rows(plan: Option<&HostPlan>, units: &Units) -> Vec<[String; 6]> {
    let planned = plan.map_or(&[][..], |plan| &plan.units);
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.push(row((TARGET, units.get(TARGET)), String::new(), ""));
    rows.extend(
        planned
            .iter()
            .map(|unit| row((&unit.name, units.get(&*unit.name)), ports(unit), "")),
    );
    let note = plan.map_or("", |_| ", not planned");
    let is_more = |name: &str| name != TARGET && !planned.iter().any(|unit| unit.name == name);
    let more = units.iter().filter(|(name, unit)| {
        let is_dead = plan.is_some() && get(Some(unit), "ActiveState") == "inactive";
        is_more(name) && !is_dead
    });
    rows.extend(more.map(|(name, unit)| row((name, Some(unit)), String::new(), note)));
    rows
}

fn table(rows: &[[String; 6]]) -> String {
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

fn ports(unit: &Unit) -> String {
    let listens = unit.listens.values().map(ToString::to_string);
    listens.collect::<Vec<_>>().join(" ")
}

fn row((name, unit): (&str, Option<&Properties>), ports: String, note: &str) -> [String; 6] {
    let get = |key| get(unit, key);
    let state = match (get("LoadState"), get("ActiveState"), get("Result")) {
        ("" | "not-found", "" | "inactive", _) => "not installed".to_owned(),
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
        state + note,
        since.join(" "),
        get("NRestarts").to_owned(),
        ports,
        get("StatusText").to_owned(),
    ]
}

/// The planned units that do not run, where there are some.
fn not_active(plan: &HostPlan, units: &Units) -> Option<UnitsError> {
    let runs = |unit: &&Unit| {
        let state = get(units.get(&*unit.name), "ActiveState");
        !["active", "reloading"].contains(&state)
    };
    match plan.units.iter().filter(runs).count() {
        0 => None,
        units => Some(UnitsError::NotActive { units }),
    }
}

fn inference(plan: &HostPlan) -> &'static str {
    match plan.is_inference_missing {
        true => "Workers are named and none is planned: units.roles has no \"inference\".\n",
        false => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::Part;

    const SHOWN: &str = "Id=kvlens.target\nLoadState=loaded\nActiveState=active\nSubState=active\n\
        StateChangeTimestamp=Sat 2026-11-28 04:18:27 UTC\n\n\
        Id=kvlens-router.service\nLoadState=loaded\nActiveState=failed\nSubState=failed\n\
        Result=exit-code\nNRestarts=0\nStateChangeTimestamp=Sat 2026-11-28 04:18:28 UTC\n\
        StatusText=router: unknown key a=b\n\n\
        Id=kvlens-frontend.socket\nLoadState=not-found\nActiveState=inactive\n\
        SubState=dead\nStateChangeTimestamp=\n\n\
        Id=kvlens-frontend.service\nLoadState=loaded\nActiveState=active\nSubState=running\n\n\
        Id=kvlens-router.service\nLoadState=loaded\nActiveState=failed\nSubState=failed\n\
        Result=exit-code\nNRestarts=0\nStateChangeTimestamp=Sat 2026-11-28 04:18:28 UTC\n\
        StatusText=router: unknown key a=b\n\n\
        Id=kvlens-worker@gpu-5.service\nLoadState=loaded\nActiveState=active\nSubState=running\n\n\
        Id=kvlens-worker@gpu-6.service\nLoadState=loaded\nActiveState=inactive\nSubState=dead\n";

    fn plan() -> HostPlan {
        let mut config = Config::default();
        config.units.roles = vec![Part::Router, Part::Frontend];
        HostPlan::new(&config)
    }

    fn check(plan: Option<&HostPlan>, expected: &[&str]) {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let table = table(&rows(plan, &units(SHOWN)));
        let lines: Vec<_> = table.lines().map(words).collect();
        assert_eq!(lines, expected, "{table}");
    }

    #[test]
    fn a_unit_is_a_line_with_what_it_says_of_itself() {
        check(
            Some(&plan()),
            &[
                "UNIT STATE SINCE RESTARTS PORTS STATUS",
                "kvlens.target active (active) 2026-11-28 04:18:27",
                "kvlens-router.service failed (exit-code) 2026-11-28 04:18:28 0 127.0.0.1:8300 \
                 router: unknown key a=b",
                "kvlens-frontend.socket not installed 127.0.0.1:8000",
                "kvlens-frontend-admin.socket not installed 127.0.0.1:8001",
                "kvlens-frontend.service active (running) 127.0.0.1:8001 127.0.0.1:8000",
                "kvlens-worker@gpu-5.service active (running), not planned",
            ],
        );
    }

    #[test]
    fn without_a_plan_there_is_what_systemd_has() {
        check(
            None,
            &[
                "UNIT STATE SINCE RESTARTS PORTS STATUS",
                "kvlens.target active (active) 2026-11-28 04:18:27",
                "kvlens-frontend.service active (running)",
                "kvlens-frontend.socket not installed",
                "kvlens-router.service failed (exit-code) 2026-11-28 04:18:28 0 router: unknown key \
                 a=b",
                "kvlens-worker@gpu-5.service active (running)",
                "kvlens-worker@gpu-6.service inactive (dead)",
            ],
        );
    }

    #[test]
    fn what_is_planned_and_does_not_run_is_counted() {
        let plan = plan();
        let shown = units(SHOWN);
        let fault = not_active(&plan, &shown).unwrap().to_string();
        assert_eq!(fault, "3 of the planned units are not active");
        let all = |unit: &Unit| {
            let active = BTreeMap::from([("ActiveState", "active")]);
            (unit.name.clone(), active)
        };
        let all: Vec<_> = plan.units.iter().map(all).collect();
        let all = all.iter().map(|(name, unit)| (&**name, unit.clone()));
        assert!(not_active(&plan, &all.collect()).is_none());
    }
}
