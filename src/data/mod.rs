//! Where documents come from.

/// Opens text files as documents, one a file.
pub fn open_documents(specs: &[String]) -> anyhow::Result<Box<dyn Iterator<Item = anyhow::Result<Vec<u8>>> + Send>> {
    let specs = specs.to_vec();
    Ok(Box::new(
        specs
            .into_iter()
            .map(|path| std::fs::read(&path).map_err(|error| crate::user_error!("{path}: cannot be read: {error}"))),
    ))
}
