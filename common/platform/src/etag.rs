//! ETags as S3 gives them: of the same bytes, cut in the same way, the same tag. They tell what an
//! object was made of without a look at its bytes, and nothing of when it was made, or by whom.

use md5::{Digest, Md5};

/// The tag of an object that was written at once, and of one part of an upload: the MD5 of its
/// bytes, quoted.
pub fn of_bytes(bytes: &[u8]) -> String {
    format!("\"{}\"", hex(&Md5::digest(bytes)))
}

/// The tag of an object that was made of an upload whose parts have these tags: the MD5 of their
/// MD5s, and how many there are, quoted. None where one of them is no MD5.
pub fn of_parts(tags: &[String]) -> Option<String> {
    let mut whole = Md5::new();
    for tag in tags {
        whole.update(unhex(unquoted(tag))?);
    }
    Some(format!("\"{}-{}\"", hex(&whole.finalize()), tags.len()))
}

/// Whether a tag says that its object was made of parts with these tags. `false` tells nothing:
/// stores that encrypt with keys of their own, or cut objects as they like, give other tags, and
/// file systems none at all.
pub fn is_of_parts(tag: &str, tags: &[String]) -> bool {
    of_parts(tags).is_some_and(|expected| unquoted(&expected) == unquoted(tag))
}

fn unquoted(tag: &str) -> &str {
    tag.trim_matches('"')
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let nibble =
        |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let bytes = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
        _ => None,
    });
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tags: &[&str]) -> Vec<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }

    #[test]
    fn the_tag_of_an_object_follows_from_those_of_its_parts() {
        let nothing = "d41d8cd98f00b204e9800998ecf8427e";
        assert_eq!(of_bytes(b""), format!("\"{nothing}\""));
        assert_eq!(
            of_parts(&tags(&[nothing])).as_deref(),
            Some("\"59adb24ef3cdbe0297f05b395827453f-1\"")
        );
        assert_eq!(
            of_parts(&tags(&[&of_bytes(b"")])),
            of_parts(&tags(&[nothing])),
            "quotes do not count"
        );
        let two = [of_bytes(b"a"), of_bytes(b"b")];
        assert!(is_of_parts(&of_parts(&two).expect("tag"), &two));
        assert!(!is_of_parts(&of_parts(&two).expect("tag"), &two[..1]));
        assert!(!is_of_parts(&of_bytes(b"ab"), &two), "the same bytes, but not made of parts");
    }

    #[test]
    fn what_is_no_md5_tells_nothing() {
        for odd in [
            "",
            "0",
            "\"abc\"",
            "d41d8cd98f00b204e9800998ecf8427",
            "x41d8cd98f00b204e9800998ecf8427e",
            "upload-1-é",
        ] {
            assert_eq!(of_parts(&tags(&[odd])), None, "{odd}");
            assert!(!is_of_parts(odd, &tags(&[odd])), "{odd}");
        }
    }
}
