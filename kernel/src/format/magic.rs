//! What an object is, by its first bytes: what is compressed, packed, in columns or no text of one
//! byte a letter is no lines, whatever it is named.
//!
//! Text may begin with the letters of a magic number by chance. So what counts is what no text has:
//! bytes that are no characters, or the structure behind the letters.

use std::iter;

/// What can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is compressed; the command that writes it out decompressed.
    Compressed(&'static str),
    /// It is an archive; the command that unpacks it.
    Archive(&'static str),
    /// It is made of columns, pages or rows.
    Table,
    /// Its characters have more bytes than one.
    Encoded,
}

/// A format that is neither lines nor records of a fixed length.
#[derive(Debug)]
pub struct Known {
    /// What it is, for people.
    pub what: &'static str,
    /// What can be done about it.
    pub kind: Kind,
    /// Extensions, in lower case.
    extensions: &'static [&'static str],
    test: fn(&[u8], u64) -> bool,
}

impl Known {
    /// What to do instead.
    pub fn advice(&self) -> String {
        match self.kind {
            Kind::Compressed(command) => {
                format!(
                    "decompress it first ({command} FILE > PLAIN) and sort what comes out; \
                        compressed input is not built yet"
                )
            }
            Kind::Archive(command) => {
                format!("unpack it first ({command}) and sort what was in it")
            }
            Kind::Table => "write its rows as lines first, and sort those".to_owned(),
            Kind::Encoded => {
                format!(
                    "convert it first (iconv -f {} -t UTF-8 FILE > PLAIN) and sort what comes out",
                    self.what
                )
            }
        }
    }

    /// What comes of sorting its bytes.
    pub fn harm(&self) -> &'static str {
        match self.kind {
            Kind::Compressed(_) => "what comes out cannot be decompressed",
            Kind::Archive(_) => "what comes out is no archive any more",
            Kind::Table => "what comes out cannot be read as such any more",
            Kind::Encoded => "its lines are cut within characters",
        }
    }
}

const NEVER: fn(&[u8], u64) -> bool = |_, _| false;

/// The formats, those first whose test is the surest.
static FORMATS: [Known; 28] = [
    compressed(
        "gzip-compressed",
        "gzip -dc",
        &["gz", "tgz"],
        |head, _| matches!(head, [0x1f, 0x8b, 8, flags, ..] if flags & 0xe0 == 0),
    ),
    compressed("bzip2-compressed", "bzip2 -dc", &["bz2", "tbz2"], |head, _| {
        let blocks = [b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"];
        matches!(
            head,
            [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..]
                if blocks.iter().any(|block| rest.starts_with(*block))
        )
    }),
    compressed("xz-compressed", "xz -dc", &["xz", "txz"], |head, _| {
        head.starts_with(b"\xfd7zXZ\0")
    }),
    compressed("zstd-compressed", "zstd -dc", &["zst", "zstd"], |head, _| {
        head.starts_with(b"\x28\xb5\x2f\xfd")
            || matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, _, _, _, _, ..])
    }),
    compressed("lz4-compressed", "lz4 -dc", &["lz4"], |head, _| {
        head.starts_with(b"\x04\x22\x4d\x18") || head.starts_with(b"\x02\x21\x4c\x18")
    }),
    compressed("lzip-compressed", "lzip -dc", &["lz"], |head, _| {
        matches!(head, [b'L', b'Z', b'I', b'P', 0 | 1, ..])
    }),
    compressed("lzma-compressed", "xz --format=lzma -dc", &["lzma"], |head, _| {
        head.starts_with(b"\x5d\0\0") && head.get(5..13) == Some(&[0xff; 8])
    }),
    compressed("lzop-compressed", "lzop -dc", &["lzo"], |head, _| {
        head.starts_with(b"\x89LZO\0\r\n\x1a\n")
    }),
    compressed("snappy-compressed", "snzip -dc", &["sz", "snappy"], |head, _| {
        head.starts_with(b"\xff\x06\0\0sNaPpY")
    }),
    compressed("compressed by compress(1)", "gzip -dc", &["z"], |head, _| {
        matches!(
            head,
            [0x1f, 0x9d, flags, ..]
                if (9..=16).contains(&(flags & 0x1f)) && flags & 0x60 == 0
        )
    }),
    // Its format has no magic number.
    compressed("brotli-compressed", "brotli -dc", &["br"], NEVER),
    archive("a tar archive", "tar -xf FILE -C FOLDER", &["tar"], |head, _| is_tar(head)),
    archive("a zip archive", "unzip FILE -d FOLDER", &["zip"], |head, _| {
        matches!(head, [b'P', b'K', 3, 4, 0..=100, 0, ..] | [b'P', b'K', 5, 6, 0, ..])
    }),
    archive("a 7z archive", "7z x FILE", &["7z"], |head, _| {
        head.starts_with(b"7z\xbc\xaf\x27\x1c")
    }),
    archive("a rar archive", "unrar x FILE", &["rar"], |head, _| head.starts_with(b"Rar!\x1a\x07")),
    table("Parquet", &["parquet"], |head, _| {
        matches!(
            head,
            [b'P', b'A', b'R', b'1' | b'E', rest @ ..]
                if rest.first() == Some(&0x15) || !is_text(head)
        )
    }),
    table("Avro", &["avro"], |head, _| head.starts_with(b"Obj\x01")),
    table("ORC", &["orc"], |head, _| head.starts_with(b"ORC") && !is_text(head)),
    table("an Arrow file", &["arrow", "feather"], |head, _| {
        head.starts_with(b"ARROW1\0\0") || head.starts_with(b"FEA1") && !is_text(head)
    }),
    table("an Arrow stream", &["arrows"], |head, _| {
        head.starts_with(b"\xff\xff\xff\xff") && head.get(8..12) == Some(&[0x10, 0, 0, 0])
    }),
    table("a SQLite database", &["sqlite", "sqlite3"], |head, _| {
        head.starts_with(b"SQLite format 3\0")
    }),
    table("HDF5", &["h5", "hdf5"], |head, _| head.starts_with(b"\x89HDF\r\n\x1a\n")),
    encoded("UTF-32", |head, bytes| {
        let marked = head.starts_with(b"\xff\xfe\0\0") || head.starts_with(b"\0\0\xfe\xff");
        bytes.is_multiple_of(4) && marked
    }),
    encoded("UTF-16", |head, bytes| {
        bytes.is_multiple_of(2) && (head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff"))
    }),
    // Without a mark: ASCII in that encoding, and nothing else.
    encoded("UTF-32LE", |head, bytes| has_ascii_at(head, bytes, 4, 0)),
    encoded("UTF-32BE", |head, bytes| has_ascii_at(head, bytes, 4, 3)),
    encoded("UTF-16LE", |head, bytes| has_ascii_at(head, bytes, 2, 0)),
    encoded("UTF-16BE", |head, bytes| has_ascii_at(head, bytes, 2, 1)),
];

const fn compressed(
    what: &'static str,
    command: &'static str,
    extensions: &'static [&'static str],
    test: fn(&[u8], u64) -> bool,
) -> Known {
    Known { what, kind: Kind::Compressed(command), extensions, test }
}

const fn archive(
    what: &'static str,
    command: &'static str,
    extensions: &'static [&'static str],
    test: fn(&[u8], u64) -> bool,
) -> Known {
    Known { what, kind: Kind::Archive(command), extensions, test }
}

const fn table(
    what: &'static str,
    extensions: &'static [&'static str],
    test: fn(&[u8], u64) -> bool,
) -> Known {
    Known { what, kind: Kind::Table, extensions, test }
}

const fn encoded(what: &'static str, test: fn(&[u8], u64) -> bool) -> Known {
    Known { what, kind: Kind::Encoded, extensions: &[], test }
}

/// What an object of `bytes` is that begins so; none for what may be lines.
pub fn of(head: &[u8], bytes: u64) -> Option<&'static Known> {
    FORMATS.iter().find(|known| (known.test)(head, bytes))
}

/// What an extension stands for, in lower case. What is text all the same is not asked for.
pub fn by_extension(extension: &str) -> Option<&'static Known> {
    FORMATS.iter().find(|known| known.extensions.contains(&extension))
}

/// Whether the first bytes of a file are UTF-8 without control characters other than those of text.
/// A character that is cut at the end is none that is wrong.
pub fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(cut) if cut.error_len().is_none() => {
            std::str::from_utf8(&head[..cut.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|c| {
        c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0b' | '\x0c' | '\x1b' | '\x08')
    })
}

/// A tar header says its own sum, in octal digits, where 8 blanks count for the sum itself. That
/// holds for every kind of tar, the first one without a magic number, too.
fn is_tar(head: &[u8]) -> bool {
    let (Some(block), Some(field)) = (head.get(..512), head.get(148..156)) else { return false };
    let digits: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|b| *b == b' ')
        .take_while(|b| (b'0'..=b'7').contains(b))
        .collect();
    let said = digits.iter().fold(0_u64, |sum, digit| sum * 8 + u64::from(digit - b'0'));
    let summed = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    !digits.is_empty() && block.contains(&0) && said == summed.map(u64::from).sum::<u64>()
}

/// Whether all characters are ASCII, each of `width` bytes of which the one at `at` is not NUL.
/// Fewer than eight of them prove nothing.
fn has_ascii_at(head: &[u8], bytes: u64, width: usize, at: usize) -> bool {
    let characters = head.chunks_exact(width);
    let ascii = |chunk: &[u8]| {
        let others =
            iter::zip(0.., chunk).all(|(place, byte): (usize, &u8)| place == at || *byte == 0);
        others && matches!(chunk[at], b' '..=b'~' | b'\n' | b'\r' | b'\t')
    };
    bytes.is_multiple_of(width as u64) && characters.len() >= 8 && characters.into_iter().all(ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(head: &[u8]) -> Option<&'static str> {
        of(head, head.len() as u64).map(|known| known.what)
    }

    #[test]
    fn content_tells_formats_whatever_their_names() {
        let utf16 =
            |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let utf32 =
            |text: &str| text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect::<Vec<u8>>();
        for (head, expected) in [
            (&b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..], "gzip-compressed"),
            (b"BZh91AY&SY\x01", "bzip2-compressed"),
            (b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0", "bzip2-compressed"),
            (b"\xfd7zXZ\0\0", "xz-compressed"),
            (b"\x28\xb5\x2f\xfd\x24", "zstd-compressed"),
            (b"\x50\x2a\x4d\x18\x04\0\0\0abcd", "zstd-compressed"),
            (b"\x04\x22\x4d\x18\x64", "lz4-compressed"),
            (b"LZIP\x01\x0c", "lzip-compressed"),
            (b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0", "lzma-compressed"),
            (b"\xff\x06\0\0sNaPpY", "snappy-compressed"),
            (b"\x1f\x9d\x90a", "compressed by compress(1)"),
            (b"PK\x03\x04\x14\0\0\0", "a zip archive"),
            (b"PAR1\x15\0", "Parquet"),
            (b"Obj\x01\x04", "Avro"),
            (b"ORC\x0a\x0b\xff\xfe", "ORC"),
            (b"ARROW1\0\0", "an Arrow file"),
            (b"\xff\xff\xff\xff\x78\0\0\0\x10\0\0\0", "an Arrow stream"),
            (b"SQLite format 3\0", "a SQLite database"),
            (b"\xff\xfea\0", "UTF-16"),
            (b"\xfe\xff\0a", "UTF-16"),
            (b"\xff\xfe\0\0a\0\0\0", "UTF-32"),
            (&utf16("several\r\nlines\n"), "UTF-16LE"),
            (&utf32("several\nlines"), "UTF-32BE"),
        ] {
            assert_eq!(what(head), Some(expected), "{head:?}");
        }
    }

    #[test]
    fn text_that_begins_like_another_format_is_text() {
        for head in [
            &b""[..],
            b"plain\n",
            b"BZh9 is how bzip2 begins\n",
            b"BZh91AY\n",
            b"PAR1\nPAR2\n",
            b"PK\n",
            b"LZIP\n",
            b"ORC\nELF\n",
            b"ORCA\tgr\xc3",
            b"Obj 1\n",
            b"P*M\n",
            b"7z x\n",
            b"\xef\xbb\xbfa mark of UTF-8\n",
            b"\xff\xfea",
            b"a\0b\0",
            b"a\0b\0c\0d\0e\0f\0g\0\x01\0i\0",
            b"gr\xfc\xdfe in latin-1\n",
        ] {
            assert_eq!(what(head), None, "{head:?}");
        }
        // Text of a whole block, with digits where a tar archive has its sum.
        let mut text = vec![b'a'; 512];
        text[148..156].copy_from_slice(b"0141000\n");
        assert_eq!(what(&text), None);
    }

    #[test]
    fn tar_archives_are_told_by_their_sum() {
        for magic in [&b"ustar\x0000"[..], b"ustar  \0", b""] {
            let mut block = [0_u8; 512];
            block[..5].copy_from_slice(b"name\0");
            block[100..108].copy_from_slice(b"0000644\0");
            block[257..257 + magic.len()].copy_from_slice(magic);
            block[148..156].copy_from_slice(b"        ");
            let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert_eq!(what(&block), Some("a tar archive"), "{magic:?}");
            assert_eq!(what(&block[..511]), None);
        }
    }

    #[test]
    fn extensions_are_known_in_lower_case() {
        assert_eq!(by_extension("zst").map(|known| known.what), Some("zstd-compressed"));
        assert!(by_extension("txt").is_none());
        let mut all: Vec<&str> =
            FORMATS.iter().flat_map(|known| known.extensions).copied().collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    }
}
