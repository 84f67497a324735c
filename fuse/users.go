package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxUsers bounds the processes that are named.
const maxUsers = 5

// users names processes that have something below a mount open, or stand in
// it. Only links of /proc are read, never the mount itself; processes of other
// users and other mount namespaces cannot be seen.
func users(dir string) (who []string) {
	procs, _ := os.ReadDir("/proc") // nobody is named then
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil || !uses(filepath.Join("/proc", p.Name()), dir) {
			continue
		}
		if len(who) == maxUsers {
			return append(who, "others")
		}
		comm, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
		who = append(who, fmt.Sprintf("process %s (%s)", p.Name(), strings.TrimSpace(string(comm))))
	}
	return who
}

func uses(proc, dir string) bool {
	below := func(link string) bool {
		to, err := os.Readlink(link)
		return err == nil && (to == dir || strings.HasPrefix(to, dir+"/"))
	}
	if below(filepath.Join(proc, "cwd")) || below(filepath.Join(proc, "root")) {
		return true
	}
	open, _ := os.ReadDir(filepath.Join(proc, "fd")) // not ours to see
	for _, fd := range open {
		if below(filepath.Join(proc, "fd", fd.Name())) {
			return true
		}
	}
	maps, _ := os.ReadFile(filepath.Join(proc, "maps"))
	return strings.Contains(string(maps), " "+dir+"/")
}
