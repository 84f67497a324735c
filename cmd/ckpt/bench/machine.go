package bench

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine says where a report was made.
type Machine struct {
	Cores  int    `json:"cores"`
	CPU    string `json:"cpu"`
	Memory int64  `json:"memory"` // bytes
	Kernel string `json:"kernel"`
	FS     string `json:"fs"`
	Dir    string `json:"dir"`
	Go     string `json:"go"`
	Load   string `json:"load"` // averages of 1, 5 and 15 minutes, when the run began
}

func (m Machine) String() string {
	return fmt.Sprintf("%d cores %s, %.0f GiB, Linux %s, %s on %s, %s, load %s", m.Cores, m.CPU, float64(m.Memory)/(1<<30), m.Kernel, m.FS, m.Dir, m.Go, m.Load)
}

// machineOf describes this machine; what it cannot find stays empty.
func machineOf(dir string) Machine {
	m := Machine{Cores: runtime.NumCPU(), Dir: dir, Go: runtime.Version(), FS: fsName(dir)}
	var un unix.Utsname
	if unix.Uname(&un) == nil {
		m.Kernel = string(bytes.TrimRight(un.Release[:], "\x00"))
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.Memory = int64(si.Totalram) * int64(si.Unit)
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return m
}

// fsNames by the magic number of statfs.
var fsNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.F2FS_SUPER_MAGIC: "f2fs",
	unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs",
	unix.FUSE_SUPER_MAGIC: "fuse", 0x2fc12fc1: "zfs", 0x0bd00bd0: "lustre",
}

func fsType(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return st.Type
}

func fsName(dir string) string {
	t := fsType(dir)
	if name, ok := fsNames[t]; ok {
		return name
	}
	return fmt.Sprintf("file system %#x", t)
}
