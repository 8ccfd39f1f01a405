//! Every kernel decodes: no form that nvcc makes of them is unsupported.

use crate::nvcc;
use ptxsim::{front, program};
use std::collections::HashMap;

#[test]
fn every_kernel_decodes() {
    let files = nvcc::all();
    assert!(files.len() >= 11, "the kernels are there");
    for (stem, archs) in files {
        for arch in archs {
            let text = nvcc::ptx(&stem, arch);
            let module = front::parser::parse(&format!("{stem}.ptx"), &text).expect("a module");
            let variables = program::global_variables(&module);
            let addresses: HashMap<String, u64> = variables
                .iter()
                .enumerate()
                .map(|(i, (name, _))| (name.clone(), 0x7_0000_0000 + i as u64 * 4096))
                .collect();
            for entry in module.functions.iter().filter(|function| function.entry) {
                if let Err(error) = program::build(&module, entry, &addresses) {
                    panic!("{stem} for {arch:?}, {}: {error}", entry.name);
                }
            }
        }
    }
}

/// The same as `ptxsim forms` says it, device functions included.
#[test]
fn every_form_is_supported() {
    for (stem, archs) in nvcc::all() {
        for arch in archs {
            let module = front::parser::parse(&format!("{stem}.ptx"), &nvcc::ptx(&stem, arch)).expect("a module");
            let forms = program::forms(&module).expect("a layout");
            assert!(!forms.is_empty(), "{stem} has instructions");
            for form in forms {
                assert_eq!(form.unsupported, None, "{stem} for {arch:?}");
            }
        }
    }
}
