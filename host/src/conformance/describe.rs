//! What a driver says of itself, and what the host makes of it.

use wasmvol_driver::{Description, OptionSpec};
use wasmvol_plan::{DriverName, Grants};

use super::{Stop, Subject, ensure, is_no_sentence, same};
use crate::asked;
use crate::volumes::options;

/// How long a line of help is that the engine has cut.
const HELP_MAX: usize = 256;

/// The host has loaded it; this is what it lets pass, and people and operators need.
pub(super) fn describe(subject: &mut Subject) -> Result<String, Stop> {
    let said = subject.driver().description();
    same("`describe`", said, &subject.again)?;
    let Description { name, version, help, options, grants } = said;
    semver::Version::parse(version)
        .map_err(|error| Stop::Broken(format!("`{version}` is no semantic version: {error}")))?;
    is_help("the driver's", help)?;
    for OptionSpec { key, help, .. } in options {
        is_help(&format!("option `{key}`'s"), help)?;
    }
    for grant in grants {
        ensure(can_be_granted(subject.driver().name(), grant), || {
            format!("`{grant}` is no grant that a host knows")
        })?;
    }
    let count = match options.len() {
        1 => "1 option".to_owned(),
        count => format!("{count} options"),
    };
    Ok(format!("{name} {version}, {count}"))
}

fn is_help(whose: &str, help: &str) -> Result<(), Stop> {
    let is_cut = help.ends_with('…') && help.len() > HELP_MAX - '…'.len_utf8() - 4;
    let wrong = if is_cut { Some("is too long and was cut") } else { is_no_sentence(help) };
    wrong.map_or(Ok(()), |wrong| Err(Stop::Broken(format!("{whose} line of help {wrong}"))))
}

/// Whether an operator can grant what a driver asks for: words of capitals stand for what they write there.
fn can_be_granted(driver: &DriverName, grant: &str) -> bool {
    let filled = |with: &str| Grants::parse(driver, &asked::fixed(grant).join(with)).is_ok();
    filled("/x") || filled("x")
}

pub(super) fn defaults(subject: &mut Subject) -> Result<String, Stop> {
    let driver = subject.driver();
    let specs = driver.description().options.iter();
    let mut count = 0;
    for (spec, text) in specs.filter_map(|spec| Some((spec, spec.default.as_ref()?))) {
        options::value(driver.name(), spec, text).map_err(|error| {
            Stop::Broken(format!("the default of `{}` is refused: {error}", spec.key))
        })?;
        count += 1;
    }
    Ok(match count {
        0 => "there is none".to_owned(),
        1 => "1 default".to_owned(),
        count => format!("{count} defaults"),
    })
}
