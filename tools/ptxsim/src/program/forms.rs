//! The instruction forms of a module, counted, with those that are not supported.

use super::decode::{Constants, Decoder, Uses};
use super::reach::reachable;
use super::{global_variables, lay_out};
use crate::error::Result;
use crate::front::ast::Module;

/// A form of a module: how often it stands there, and whether the simulator knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormCount {
    /// Opcode and modifiers as written.
    pub form: String,
    /// Static count.
    pub count: u64,
    /// Why it cannot run, if it cannot.
    pub unsupported: Option<String>,
}

/// Every form of a module with its count.
///
/// # Errors
/// When the memory of a function cannot be laid out.
pub fn forms(module: &Module) -> Result<Vec<FormCount>> {
    let mut forms = std::collections::BTreeMap::<String, (u64, Option<String>)>::new();
    let addresses = global_variables(module).into_iter().map(|(name, _)| (name, crate::address::HEAP_BASE)).collect();
    for function in &module.functions {
        let Some(body) = &function.body else { continue };
        let (layout, _, _) = lay_out(module, &reachable(module, function), &addresses)?;
        let mut constants = Constants::default();
        let mut decoder = Decoder {
            module,
            function,
            layout: &layout,
            slots: None,
            constants: &mut constants,
            first_pc: 0,
            dead: None,
            uses: Uses::default(),
        };
        for instruction in body {
            let entry = forms.entry(instruction.form()).or_default();
            entry.0 += 1;
            if let Err(error) = decoder.instruction(instruction) {
                entry.1.get_or_insert_with(|| error.to_string());
            }
        }
    }
    let rows = forms.into_iter();
    Ok(rows.map(|(form, (count, unsupported))| FormCount { form, count, unsupported }).collect())
}
