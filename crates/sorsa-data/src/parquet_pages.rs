//! The pages of a parquet file, decompressed within limits. The `parquet` crate decompresses gzip and brotli without one, and
//! zstd by a library in C.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length, RowGroupReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

use crate::data_file;
use crate::expansion::Expansion;

/// Largest size of a page, decompressed. Writers end a page after a megabyte or after a thousand values.
const MAX_PAGE_BYTES: usize = 256 << 20;

/// The file of the pages. It refuses a page by its header, before anything is allocated.
pub(crate) struct PageFile {
    file: File,
    expansion: Arc<Expansion>,
}

/// What a column's page reader reads from: the file, and the size that the last header says.
struct ColumnFile {
    pages: Arc<PageFile>,
    page_bytes: AtomicUsize,
}

impl PageFile {
    pub fn new(file: File, expansion: Arc<Expansion>) -> Self {
        Self { file, expansion }
    }
}

impl Length for ColumnFile {
    fn len(&self) -> u64 {
        self.pages.file.len()
    }
}

impl ChunkReader for ColumnFile {
    type T = <File as ChunkReader>::T;

    /// The page reader asks for a reader where a page's header begins.
    fn get_read(&self, start: u64) -> Result<Self::T> {
        let mut header = Vec::new();
        self.pages.file.get_read(start)?.take(16).read_to_end(&mut header)?;
        if let Some(size) = uncompressed_size(&header) {
            if size > MAX_PAGE_BYTES {
                let (mib, limit) = (size >> 20, MAX_PAGE_BYTES >> 20);
                return Err(ParquetError::General(format!("a page of {mib} MiB; at most {limit} MiB are read")));
            }
            self.pages.expansion.add(size as u64).map_err(ParquetError::General)?;
            self.page_bytes.store(size, Ordering::Relaxed);
        }
        self.pages.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.pages.file.get_bytes(start, length)
    }
}

/// The field `uncompressed_page_size` of a page's header in Thrift's compact protocol: the second of three 32-bit integers that
/// every header begins with.
fn uncompressed_size(header: &[u8]) -> Option<usize> {
    let mut rest = header;
    let mut integer = || -> Option<i64> {
        // Type 5, an i32, one field further.
        let (0x15, after) = rest.split_first().map(|(first, after)| (*first, after))? else { return None };
        rest = after;
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let (byte, after) = rest.split_first()?;
            rest = after;
            value |= u64::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return Some((value >> 1) as i64 ^ -((value & 1) as i64));
            }
            if shift > 35 {
                return None;
            }
        }
    };
    integer()?;
    usize::try_from(integer()?).ok()
}

/// A row group whose columns are read by [`BoundedPages`].
pub(crate) struct BoundedRowGroup<'a> {
    file: Arc<PageFile>,
    metadata: &'a RowGroupMetaData,
}

impl<'a> BoundedRowGroup<'a> {
    pub fn new(file: Arc<PageFile>, metadata: &'a RowGroupMetaData) -> Self {
        Self { file, metadata }
    }
}

impl RowGroupReader for BoundedRowGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.metadata
    }

    fn num_columns(&self) -> usize {
        self.metadata.num_columns()
    }

    fn get_column_page_reader(&self, index: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata.column(index).clone();
        let file = Arc::new(ColumnFile { pages: Arc::clone(&self.file), page_bytes: AtomicUsize::new(0) });
        let rows = usize::try_from(self.metadata.num_rows())?;
        let codec = match column.compression() {
            Compression::GZIP(_) => Codec::Gzip,
            Compression::ZSTD(_) => Codec::Zstd,
            Compression::BROTLI(_) => Codec::Brotli,
            // The others allocate what the header says and no more.
            _ => return Ok(Box::new(SerializedPageReader::new(file, &column, rows, None)?)),
        };
        let raw = column.into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        let inner = SerializedPageReader::new(Arc::clone(&file), &raw, rows, None)?;
        Ok(Box::new(BoundedPages { inner, file, codec }))
    }

    fn get_column_bloom_filter(&self, _index: usize) -> Option<&Sbbf> {
        None
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// Codecs that are decompressed here.
#[derive(Debug, Clone, Copy)]
enum Codec {
    Gzip,
    Zstd,
    Brotli,
}

/// Decompresses the pages of a reader that takes them for uncompressed.
struct BoundedPages {
    inner: SerializedPageReader<ColumnFile>,
    file: Arc<ColumnFile>,
    codec: Codec,
}

impl BoundedPages {
    /// Decompresses what comes after the first `plain` bytes of a page.
    fn decompressed(&self, buffer: &Bytes, plain: usize) -> Result<Bytes> {
        let size = self.file.page_bytes.load(Ordering::Relaxed);
        let (Some(levels), Some(compressed)) = (buffer.get(..plain), buffer.get(plain..)) else {
            return Err(ParquetError::General("a page is shorter than its levels".into()));
        };
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(levels);
        // A page without values has nothing to decompress.
        if size > plain {
            let limit = (size - plain) as u64 + 1;
            let read = match self.codec {
                Codec::Gzip => flate2::read::MultiGzDecoder::new(compressed).take(limit).read_to_end(&mut bytes),
                Codec::Brotli => {
                    brotli_decompressor::Decompressor::new(compressed, 1 << 16).take(limit).read_to_end(&mut bytes)
                }
                Codec::Zstd => {
                    let values = data_file::zstd(compressed, limit).map_err(ParquetError::General)?;
                    bytes.extend_from_slice(&values);
                    Ok(values.len())
                }
            };
            read.map_err(|error| ParquetError::General(format!("a page cannot be decompressed: {error}")))?;
        }
        if bytes.len() == size {
            Ok(Bytes::from(bytes))
        } else {
            Err(ParquetError::General(format!("a page does not have the {size} bytes that its header says")))
        }
    }
}

impl PageReader for BoundedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some(mut page) = self.inner.get_next_page()? else { return Ok(None) };
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => *buf = self.decompressed(buf, 0)?,
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, is_compressed, .. } => {
                if *is_compressed {
                    *buf = self.decompressed(buf, *def_levels_byte_len as usize + *rep_levels_byte_len as usize)?;
                }
            }
        }
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.inner.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.inner.at_record_boundary()
    }
}

impl Iterator for BoundedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}
