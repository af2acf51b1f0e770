//! What EC2 keeps of a volume in its disk's tags: id, name and options, so that other machines find it as it was made.
//!
//! Written when a disk is made or adopted, read by `list`. A tag's key is `wasmvol:` and the option's; EC2 takes 50 of them.

use wasmvol_sdk::{Description, Found, OptionValue, Value, ValueType, Volume};

use crate::{Disk, State};

/// The tag that has the volume's id.
pub(crate) const ID: &str = "wasmvol:id";
/// The tag that has its name. EC2's own `Name` anybody may change, and nothing is lost.
pub(crate) const NAME: &str = "wasmvol:name";

/// The tags of a volume's disk.
pub(crate) fn of(volume: &Volume) -> Vec<(String, String)> {
    let own = [(ID.to_owned(), volume.id.clone()), (NAME.to_owned(), volume.name.clone())];
    let options = volume.options.iter().map(|option| (key_of(&option.key), text(&option.value)));
    own.into_iter().chain(options).collect()
}

fn key_of(option: &str) -> String {
    format!("wasmvol:{option}")
}

/// A value as a user would write it.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Text(text) | Value::Secret(text) => text.clone(),
        Value::Size(number) | Value::Duration(number) => number.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
    }
}

impl Disk {
    /// The volume that this disk was made or adopted for, on whatever machine, if it still has the tags that say so.
    #[must_use]
    pub fn found(&self, description: &Description) -> Option<Found> {
        let options = description.options.iter().filter_map(|spec| {
            let text = self.tag(&key_of(&spec.key))?;
            let value = match spec.value_type {
                ValueType::Size => Value::Size(text.parse().ok()?),
                ValueType::Duration => Value::Duration(text.parse().ok()?),
                ValueType::Number => Value::Number(text.parse().ok()?),
                ValueType::Boolean => Value::Boolean(text.parse().ok()?),
                ValueType::Text => Value::Text(text.to_owned()),
                ValueType::Secret => Value::Secret(text.to_owned()),
            };
            Some(OptionValue { key: spec.key.clone(), value })
        });
        let mut options: Vec<_> = options.collect();
        options.sort_by(|first, second| first.key.cmp(&second.key));
        let owned = self.tag(&key_of("volume")).is_none();
        let (id, name) = (self.tag(ID)?.to_owned(), self.tag(NAME)?.to_owned());
        Some(Found { name, id: Some(id), options, state: State::of(self).text().into(), owned })
    }
}
