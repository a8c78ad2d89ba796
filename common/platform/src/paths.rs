//! Paths as keys and back: a key is text, the name of a file is any bytes.
//!
//! A key is the path itself wherever that is UTF-8. Each byte that is not is written `\xHH` (two
//! lower-case hex digits, 80 to ff). A backslash that stands before what would be read as such a
//! byte is written `\x5c`, so that every path has one key and every key one path; all other
//! backslashes stand for themselves.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The one ASCII byte that is ever written as an escape.
const BACKSLASH: u8 = b'\\';
/// Bytes of an escape.
const ESCAPE_LEN: usize = 4;

/// The key of a path: without leading slash, with what is no UTF-8 escaped.
pub fn key_of(path: &Path) -> String {
    let mut key = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(at) = rest.find('\\') {
            let escape = escaped_byte(&rest.as_bytes()[at..]).is_some();
            key.push_str(&rest[..at]);
            key.push_str(if escape { r"\x5c" } else { r"\" });
            rest = &rest[at + 1..];
        }
        key.push_str(rest);
        for byte in chunk.invalid() {
            key.push_str(&format!("\\x{byte:02x}"));
        }
    }
    key.trim_start_matches('/').to_owned()
}

/// The absolute path that a key stands for.
pub fn path_of(key: &str) -> PathBuf {
    let key = key.trim_start_matches('/').as_bytes();
    let mut path = vec![b'/'];
    let mut at = 0;
    while at < key.len() {
        match escaped_byte(&key[at..]) {
            Some(byte) => {
                path.push(byte);
                at += ESCAPE_LEN;
            }
            None => {
                path.push(key[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

/// The byte that an escape stands for, where the text begins with one.
fn escaped_byte(text: &[u8]) -> Option<u8> {
    let [BACKSLASH, b'x', high, low, ..] = text else { return None };
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let byte = digit(high)? * 16 + digit(low)?;
    (byte >= 0x80 || byte == BACKSLASH).then_some(byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_name_that_is_no_utf_8_has_a_key_and_no_two_names_share_one() {
        let check = |name: &[u8], key: &str| {
            let path = Path::new("/d").join(OsStr::from_bytes(name));
            assert_eq!(key_of(&path), format!("d/{key}"), "{name:?}");
            assert_eq!(path_of(&format!("d/{key}")), path, "{key}");
        };
        check(b"plain", "plain");
        check("gr\u{fc}n".as_bytes(), "gr\u{fc}n");
        check(b"gr\xfcn", r"gr\xfcn");
        check(br"gr\xfcn", r"gr\x5cxfcn");
        check(br"gr\x5cxfcn", r"gr\x5cx5cxfcn");
        check(br"a\b\x7f\xF0\", r"a\b\x7f\xF0\");
        check(b"\xff\xfe", r"\xff\xfe");
        // Cut within a character, so that the escape of the rest follows a backslash.
        check(b"\\\xc3", r"\\xc3");
    }

    #[test]
    fn every_path_comes_back() {
        const BYTES: [u8; 12] =
            [b'\\', b'\\', b'x', b'x', b'5', b'c', b'f', b'8', b'0', 0xff, 0xc3, 0xbc];
        let mut state = 3_u64;
        let mut next = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut keys = std::collections::HashMap::new();
        for _ in 0..20_000 {
            let name: Vec<u8> = (0..1 + next(9)).map(|_| BYTES[next(BYTES.len())]).collect();
            let path = Path::new("/").join(OsStr::from_bytes(&name));
            let key = key_of(&path);
            assert_eq!(path_of(&key), path, "{key}");
            let before = keys.insert(key.clone(), name.clone());
            assert!(before.is_none_or(|before| before == name), "{key} stands for two names");
        }
    }
}
