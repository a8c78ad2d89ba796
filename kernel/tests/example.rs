//! The example of the kernel as a library does what it says.

#[path = "../../examples/kernel.rs"]
#[expect(dead_code, reason = "the example's main reads standard input")]
mod kernel;

#[test]
fn lines_of_two_splits_come_out_in_order() {
    let sorted = kernel::sorted(&[b"pear\napple\n", b"plum\n\napple\nfig"]).expect("sorted");
    assert_eq!(sorted, b"\napple\napple\nfig\npear\nplum\n");
    assert_eq!(kernel::sorted(&[]), Ok(Vec::new()));
}
