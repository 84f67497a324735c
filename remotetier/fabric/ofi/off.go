//go:build !ofi

package ofi

import (
	"fmt"

	"github.com/ckptd/ckptd/catalog"
)

// New says that this program cannot.
func New(Options) (Net, error) {
	return nil, fmt.Errorf("%w: this ckptd was built without RDMA; build with `make build-ofi`", catalog.ErrInvalid)
}
