//! Parquet files as a source: a document per row, from the string column `text`, read row group by row group.

use super::random::identity;
use super::source::{Document, Place, Reader, Record, Source};
use super::text::{fingerprint_of, open_file};
use crate::{user_bail, user_error};
use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows decoded at a time.
const ROWS_PER_READ: usize = 64;

/// Parquet files; a unit is a row group, an offset a row within it.
pub struct ParquetFiles {
    name: String,
    fingerprint: u64,
    files: Vec<ParquetFile>,
    groups: Vec<(u32, u32)>,
}

struct ParquetFile {
    path: Arc<Path>,
    column: usize,
}

impl ParquetFiles {
    /// Opens `paths` and reads their footers.
    /// Errors: a user error when a file cannot be read, is no Parquet file or has no string column `text`.
    pub fn open(name: &str, paths: &[PathBuf]) -> anyhow::Result<ParquetFiles> {
        let (mut files, mut groups) = (Vec::new(), Vec::new());
        for (index, path) in paths.iter().enumerate() {
            let reader = open_parquet(path)?;
            let schema = reader.metadata().file_metadata().schema_descr();
            let columns = schema.columns();
            let Some(column) = columns.iter().position(|column| column.path().string() == "text") else {
                let names: Vec<String> = columns.iter().take(8).map(|column| column.path().string()).collect();
                user_bail!("{} has no column 'text', only {}; rename the column", path.display(), names.join(", "));
            };
            if columns[column].physical_type() != Type::BYTE_ARRAY || columns[column].max_rep_level() > 0 {
                user_bail!("the column 'text' of {} does not hold strings; rewrite it as strings", path.display());
            }
            groups.extend((0..reader.num_row_groups()).map(|group| (index as u32, group as u32)));
            files.push(ParquetFile { path: Arc::from(path.as_path()), column });
        }
        Ok(ParquetFiles { name: name.to_owned(), fingerprint: fingerprint_of(paths)?, files, groups })
    }
}

impl Source for ParquetFiles {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn units(&self) -> u64 {
        self.groups.len() as u64
    }

    fn open(&self, place: Place) -> anyhow::Result<Box<dyn Reader>> {
        let (file, group) = self.groups[place.unit as usize];
        let file = &self.files[file as usize];
        let reader = open_parquet(&file.path)?;
        let broken = |error| broken(&file.path, error);
        let group = reader.get_row_group(group as usize).map_err(broken)?;
        let ColumnReader::ByteArrayColumnReader(mut column) = group.get_column_reader(file.column).map_err(broken)?
        else {
            user_bail!("the column 'text' of {} does not hold strings; rewrite it as strings", file.path.display());
        };
        if place.offset > 0 {
            column.skip_records(place.offset as usize).map_err(broken)?;
        }
        Ok(Box::new(ColumnTexts {
            path: file.path.clone(),
            column,
            optional: group.metadata().column(file.column).column_descr().max_def_level() > 0,
            row: place.offset,
            decoded: VecDeque::new(),
            current: None,
        }))
    }
}

struct ColumnTexts {
    path: Arc<Path>,
    column: ColumnReaderImpl<ByteArrayType>,
    optional: bool,
    row: u64,
    decoded: VecDeque<Option<ByteArray>>,
    current: Option<ByteArray>,
}

impl ColumnTexts {
    /// Decodes the next rows; an absent value is a row without a document.
    fn decode(&mut self) -> anyhow::Result<usize> {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let levels_wanted = self.optional.then_some(&mut levels);
        let (rows, ..) = self
            .column
            .read_records(ROWS_PER_READ, levels_wanted, None, &mut values)
            .map_err(|error| broken(&self.path, error))?;
        let mut values = values.into_iter();
        if self.optional {
            self.decoded.extend(levels.iter().map(|&level| if level > 0 { values.next() } else { None }));
        } else {
            self.decoded.extend(values.map(Some));
        }
        Ok(rows)
    }
}

impl Reader for ColumnTexts {
    fn advance(&mut self) -> anyhow::Result<Option<Record>> {
        loop {
            if self.decoded.is_empty() && self.decode()? == 0 {
                return Ok(None);
            }
            let Some(row) = self.decoded.pop_front() else { continue };
            let offset = self.row;
            self.row += 1;
            if let Some(text) = row {
                let identity = identity(text.data());
                self.current = Some(text);
                return Ok(Some(Record { offset, next: self.row, identity }));
            }
        }
    }

    fn document(&mut self) -> anyhow::Result<Document> {
        let text = self.current.take().expect("advance found a row");
        Ok(Document::Bytes(text.data().to_vec()))
    }
}

fn open_parquet(path: &Path) -> anyhow::Result<SerializedFileReader<File>> {
    SerializedFileReader::new(open_file(path)?).map_err(|error| broken(path, error))
}

fn broken(path: &Path, error: parquet::errors::ParquetError) -> anyhow::Error {
    user_error!("{} is not a sound Parquet file ({error}); fetch or write it again", path.display())
}
