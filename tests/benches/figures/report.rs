//! What was measured, as a table that README can carry, or as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine;

/// What a figure is measured against.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// One figure.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) goal: Goal,
    pub(crate) measured: f64,
    /// `times` for a ratio.
    pub(crate) unit: &'static str,
    /// The numbers behind it.
    pub(crate) raw: String,
}

/// The same call to two servers: p50 in microseconds.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) call: String,
    pub(crate) own: f64,
    pub(crate) rclone: f64,
}

/// What many clients asked for at once: microseconds in all, and of one call.
#[derive(Debug)]
pub(crate) struct Verb {
    pub(crate) verb: &'static str,
    pub(crate) volumes: usize,
    pub(crate) took: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// A process that had to do with it, and its RSS.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) mebibytes: String,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    busy: f64,
    took: Duration,
    figures: Vec<Figure>,
    pairs: Vec<Pair>,
    verbs: Vec<Verb>,
    processes: Vec<Process>,
}

impl Goal {
    fn is_met(self, measured: f64) -> bool {
        match self {
            Self::AtMost(most) => measured <= most,
            Self::AtLeast(least) => measured >= least,
        }
    }

    fn number(self) -> f64 {
        match self {
            Self::AtMost(number) | Self::AtLeast(number) => number,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::AtMost(_) => "at most",
            Self::AtLeast(_) => "at least",
        }
    }
}

impl Report {
    /// An empty one, of this machine as it is now.
    pub(crate) fn new() -> Self {
        Self {
            busy: machine::busy_share(),
            machine: machine::describe(),
            took: Duration::ZERO,
            figures: Vec::new(),
            pairs: Vec::new(),
            verbs: Vec::new(),
            processes: Vec::new(),
        }
    }

    /// Adds a figure.
    pub(crate) fn figure(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Adds a comparison.
    pub(crate) fn pair(&mut self, pair: Pair) {
        self.pairs.push(pair);
    }

    /// Adds a verb of the shelf at work.
    pub(crate) fn verb(&mut self, verb: Verb) {
        self.verbs.push(verb);
    }

    /// Adds a process of it.
    pub(crate) fn process(&mut self, process: Process) {
        self.processes.push(process);
    }

    /// Says how long it took.
    pub(crate) fn end(&mut self, took: Duration) {
        self.took = took;
    }

    /// One JSON object.
    pub(crate) fn to_json(&self) -> String {
        let figure = |figure: &Figure| {
            json!({
                "figure": figure.name,
                "goal": { figure.goal.words(): figure.goal.number() },
                "measured": figure.measured,
                "unit": figure.unit,
                "met": figure.goal.is_met(figure.measured),
                "raw": figure.raw,
            })
        };
        let pair = |pair: &Pair| json!({"call": pair.call, "wasmvol_us": pair.own, "rclone_us": pair.rclone});
        let verb = |verb: &Verb| json!({"verb": verb.verb, "volumes": verb.volumes, "took_us": verb.took, "p50_us": verb.p50, "p99_us": verb.p99});
        let process =
            |process: &Process| json!({"process": process.name, "rss_mib": process.mebibytes});
        let all = json!({
            "machine": self.machine,
            "busy_before": self.busy,
            "seconds": self.took.as_secs(),
            "figures": self.figures.iter().map(figure).collect::<Vec<Value>>(),
            "shelf": self.verbs.iter().map(verb).collect::<Vec<Value>>(),
            "shelf_processes": self.processes.iter().map(process).collect::<Vec<Value>>(),
            "beside_rclone": self.pairs.iter().map(pair).collect::<Vec<Value>>(),
        });
        format!("{all}\n")
    }

    /// Tables in Markdown.
    pub(crate) fn to_text(&self) -> String {
        let mut rows =
            vec![["figure", "goal", "measured", "met", "the numbers behind it"].map(str::to_owned)];
        rows.extend(self.figures.iter().map(|figure| {
            let Figure { name, goal, measured, unit, raw } = figure;
            let goal_number = number(goal.number());
            [
                name.clone(),
                format!("{} {goal_number} {unit}", goal.words()),
                format!("{} {unit}", number(*measured)),
                if goal.is_met(*measured) { "yes" } else { "NO" }.to_owned(),
                raw.clone(),
            ]
        }));
        let mut text = table(&rows);
        if !self.pairs.is_empty() {
            let head = ["call, p50", "wasmvol", "`rclone serve docker`", "rclone / wasmvol"];
            let mut rows = vec![head.map(str::to_owned)];
            rows.extend(self.pairs.iter().map(|Pair { call, own, rclone }| {
                [call.clone(), time(*own), time(*rclone), number(rclone / own)]
            }));
            text.push('\n');
            text.push_str(&table(&rows));
            text.push_str(
                "\nA Create of wasmvol is on the disk when it is answered; rclone syncs nothing.\n",
            );
        }
        if !self.verbs.is_empty() {
            let head = ["volumes of every kind, 8 clients", "all of them", "p50", "p99"];
            let mut rows = vec![head.map(str::to_owned)];
            rows.extend(self.verbs.iter().map(|Verb { verb, volumes, took, p50, p99 }| {
                [format!("{verb} of {volumes}"), time(*took), time(*p50), time(*p99)]
            }));
            text.push('\n');
            text.push_str(&table(&rows));
            let head = ["process, while all are mounted", "RSS, MiB"];
            let mut rows = vec![head.map(str::to_owned)];
            let row = |process: &Process| [process.name.clone(), process.mebibytes.clone()];
            rows.extend(self.processes.iter().map(row));
            text.push('\n');
            text.push_str(&table(&rows));
        }
        // A String takes every write.
        let _ = write!(
            text,
            "\n`make bench`: {}; others used {:.0} % of the processors before the run; {} s in all.\n",
            self.machine,
            self.busy * 100.0,
            self.took.as_secs()
        );
        text
    }
}

/// A table in Markdown whose columns also line up on a terminal. The first row is the head.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let pad = width(column).unwrap_or(0).saturating_sub(cell.chars().count());
            text.push_str("| ");
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', pad + 1));
        }
        text.push_str("|\n");
        if at == 0 {
            for column in 0..N {
                text.push('|');
                text.extend(std::iter::repeat_n('-', width(column).unwrap_or(0) + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// A number with as many digits as say something.
pub(crate) fn number(number: f64) -> String {
    let places = if number.fract() == 0.0 || number >= 100.0 {
        0
    } else if number >= 10.0 {
        1
    } else {
        2
    };
    format!("{number:.places$}")
}

/// Microseconds in the unit that reads best.
pub(crate) fn time(micros: f64) -> String {
    if micros >= 1e6 {
        format!("{} s", number(micros / 1e6))
    } else if micros >= 1e3 {
        format!("{} ms", number(micros / 1e3))
    } else {
        format!("{} us", number(micros))
    }
}
