package ckpt

import "github.com/ckptd/ckptd/catalog"

// Levels of safety; see catalog.Level.
const (
	Staged     = catalog.Staged
	Local      = catalog.Local
	Replicated = catalog.Replicated
	Remote     = catalog.Remote
	Verified   = catalog.Verified
)

// Element types, by their safetensors names.
const (
	Bool   catalog.DType = "BOOL"
	U8     catalog.DType = "U8"
	I8     catalog.DType = "I8"
	U16    catalog.DType = "U16"
	I16    catalog.DType = "I16"
	U32    catalog.DType = "U32"
	I32    catalog.DType = "I32"
	U64    catalog.DType = "U64"
	I64    catalog.DType = "I64"
	F16    catalog.DType = "F16"
	BF16   catalog.DType = "BF16"
	F32    catalog.DType = "F32"
	F64    catalog.DType = "F64"
	C64    catalog.DType = "C64"
	F8E4M3 catalog.DType = "F8_E4M3"
	F8E5M2 catalog.DType = "F8_E5M2"
	F8E8M0 catalog.DType = "F8_E8M0"
	F6E2M3 catalog.DType = "F6_E2M3"
	F6E3M2 catalog.DType = "F6_E3M2"
	F4     catalog.DType = "F4"
)
