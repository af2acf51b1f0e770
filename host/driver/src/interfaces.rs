//! What a component imports and exports, by name, read off its bytes without compiling or running anything of it.
//!
//! For the command line, which tells a registry. Whether a driver may have them says [`crate::check_interfaces`].

use wasmparser::{Parser, Payload};

use crate::LoadError;
use crate::engine::check_kind;

/// The names of interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// What the component needs.
    pub imports: Vec<String>,
    /// What it offers.
    pub exports: Vec<String>,
}

impl Interfaces {
    /// Reads them off a component.
    ///
    /// # Errors
    /// It is no component, is too large, or is damaged.
    pub fn read(component: &[u8]) -> Result<Self, LoadError> {
        check_kind(component)?;
        Self::parse(component).map_err(|_| {
            LoadError::NotAComponent("is damaged: it ends or goes on where it must not")
        })
    }

    fn parse(component: &[u8]) -> wasmparser::Result<Self> {
        let mut found = Self::default();
        // What lies inside has imports and exports of its own.
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(component) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        found.imports.push(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        found.exports.push(export?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }
}
