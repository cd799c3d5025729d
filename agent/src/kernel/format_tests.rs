//! Format files as kernels write them, and texts that no kernel writes.

use proptest::prelude::*;

use super::*;

fn format(fields: &str) -> String {
    format!(
        "name: event\nID: 42\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n{fields}\n\
         print fmt: \"x=%d\", REC->x\n"
    )
}

fn one(declaration: &str) -> Result<(String, String, Shape), FormatError> {
    let text = format(&format!(
        "\tfield:{declaration};\toffset:8;\tsize:16;\tsigned:1;\n"
    ));
    let mut parsed = parse(&text)?;
    let field = parsed.fields.pop().ok_or(FormatError::Missing("field"))?;
    assert_eq!(
        (field.offset, field.size, field.signed),
        (8, 16, true),
        "{declaration}"
    );
    Ok((field.name, field.declared, field.shape))
}

#[test]
fn declarations_are_taken_apart() -> Result<(), FormatError> {
    for (declaration, name, declared, shape) in [
        ("int x", "x", "int", Shape::Scalar),
        ("unsigned long long x", "x", "unsigned long long", Shape::Scalar),
        ("char comm[16]", "comm", "char", Shape::Array),
        ("char comm[TASK_COMM_LEN]", "comm", "char", Shape::Array),
        ("unsigned long args[6]", "args", "unsigned long", Shape::Array),
        ("const char * filename", "filename", "const char *", Shape::Scalar),
        ("const void* p", "p", "const void *", Shape::Scalar),
        (
            "struct iocb * * iocbpp",
            "iocbpp",
            "struct iocb **",
            Shape::Scalar,
        ),
        (
            "const char *const * argv",
            "argv",
            "const char * const *",
            Shape::Scalar,
        ),
        ("void __seg_gs * p", "p", "void __seg_gs *", Shape::Scalar),
        (
            "enum hrtimer_mode mode",
            "mode",
            "enum hrtimer_mode",
            Shape::Scalar,
        ),
        ("__data_loc char[] name", "name", "char", Shape::DataLoc),
        (
            "__data_loc unsigned int[] list",
            "list",
            "unsigned int",
            Shape::DataLoc,
        ),
        (
            "__data_loc cpumask_t cpumask",
            "cpumask",
            "cpumask_t",
            Shape::DataLoc,
        ),
        ("__rel_loc char[] name", "name", "char", Shape::RelLoc),
    ] {
        assert_eq!(
            one(declaration)?,
            (name.to_owned(), declared.to_owned(), shape),
            "{declaration}"
        );
    }
    Ok(())
}

#[test]
fn common_fields_are_left_out_and_the_rest_is_kept() -> Result<(), FormatError> {
    let parsed = parse(&format("\tfield:int x;\toffset:8;\tsize:4;\tsigned:1;\n"))?;
    assert_eq!(
        (parsed.name.as_str(), parsed.id, parsed.fields.len()),
        ("event", 42, 1)
    );
    assert_eq!(parsed.print, "\"x=%d\", REC->x");
    Ok(())
}

#[test]
fn a_line_that_is_not_understood_is_shown() {
    let text = format("\tfield:int (*f)(void);\toffset:8;\tsize:8;\tsigned:0;\n");
    let expected = FormatError::Field {
        line: 6,
        text: "field:int (*f)(void);\toffset:8;\tsize:8;\tsigned:0;".to_owned(),
    };
    assert_eq!(parse(&text), Err(expected));
    assert_eq!(parse("ID: 1\n"), Err(FormatError::Missing("name")));
    assert_eq!(parse("name: x\n"), Err(FormatError::Missing("ID")));
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "(name:|ID:|\tfield:|print fmt:|[ -~é\n\t]{0,12}|;|\toffset:8|size:|signed:1){0,20}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_declaration_is_survived(declaration in "(__data_loc |\\[\\]|\\[|\\]|\\*|[a-zé_0-9 ]{0,6}){0,8}") {
        let _ = parse_declaration(&declaration);
    }
}
