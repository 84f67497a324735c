package bucket

import (
	"net"
	"net/http"
	"os"
	"time"

	minio "github.com/minio/minio-go/v7/pkg/credentials"
)

// chain looks for credentials in the usual places, in order.
type chain struct{ creds *minio.Credentials }

// places is where credentials are looked for, for people.
const places = "credentials are looked for in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in MINIO_ACCESS_KEY and MINIO_SECRET_KEY, in the shared file " +
	"(AWS_SHARED_CREDENTIALS_FILE or ~/.aws/credentials, profile AWS_PROFILE), in ~/.mc/config.json (MINIO_ALIAS), in a web identity (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN), " +
	"and at the metadata service of the container or machine"

// roleTimeout bounds the wait for the machine to name its role.
const roleTimeout = 5 * time.Second

// newChain looks where other tools do.
func newChain() *chain {
	// The metadata service answers at once where there is one.
	client := &http.Client{Timeout: roleTimeout, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext, TLSHandshakeTimeout: 3 * time.Second,
	}}
	providers := []minio.Provider{
		&minio.EnvAWS{}, &minio.EnvMinio{}, &minio.FileAWSCredentials{}, &minio.FileMinioClient{},
	}
	if os.Getenv("AWS_EC2_METADATA_DISABLED") != "true" || os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE") != "" {
		providers = append(providers, &minio.IAM{Client: client})
	}
	return &chain{creds: minio.NewChainCredentials(providers)}
}

// tried says what was found, without giving secrets away.
func (c *chain) tried() string {
	v, err := c.creds.GetWithContext(nil)
	switch {
	case err != nil:
		return "no credentials: " + err.Error() + "; " + places
	case v.SignerType == minio.SignatureAnonymous || v.AccessKeyID == "":
		return "no credentials were found, so none were sent; " + places
	}
	kind := "a key"
	if v.SessionToken != "" {
		kind = "a temporary key"
	}
	id := v.AccessKeyID[:min(4, len(v.AccessKeyID))] + "…"
	return "sent with " + kind + " that begins with " + id + "; " + places
}
