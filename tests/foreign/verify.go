// SPDX-FileCopyrightText: The cvmtool authors
// SPDX-License-Identifier: Apache-2.0

// Show reports to Google's go-sev-guest, which shares no code with cvmtool.
//
// Standard input: a JSON list of cases (below; bytes as base64). Standard output: a list of {"verify", "validate"}, each what
// the library had to say, "" if nothing. The case's ARK is the one root that is trusted; the network is never asked.
package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
)

type Case struct {
	Line                              string
	Report, Vek, Ask, Ark, Crl        []byte
	Vlek, CheckRevocations            bool
	At                                int64
	Measurement, HostData, ReportData []byte
	MinimumTcb                        kds.TCBParts
}

type Said struct {
	Verify   string `json:"verify"`
	Validate string `json:"validate"`
}

// Get answers with the case's revocation list, whatever the address: there is one a case.
func (c Case) Get(string) ([]byte, error) {
	if c.Crl == nil {
		return nil, errors.New("the revocation list is withheld")
	}
	return c.Crl, nil
}

func (c Case) try() (Said, error) {
	root := trust.AMDRootCertsProduct(c.Line)
	if err := root.Decode(c.Ask, c.Ark); err != nil {
		return Said{}, err
	}
	if root.ProductCerts.Ask == nil { // the library looks for the list's address in the ASK alone
		root.ProductCerts.Ask = &x509.Certificate{}
	}
	report, err := abi.ReportToProto(c.Report)
	if err != nil {
		return Said{Verify: err.Error(), Validate: err.Error()}, nil
	}
	chain := &spb.CertificateChain{AskCert: c.Ask, ArkCert: c.Ark}
	if c.Vlek {
		chain.VlekCert = c.Vek
	} else {
		chain.VcekCert = c.Vek
	}
	shown := &spb.Attestation{Report: report, CertificateChain: chain}
	verified := verify.SnpAttestation(shown, &verify.Options{
		CheckRevocations:    c.CheckRevocations,
		DisableCertFetching: true,
		Getter:              c,
		Now:                 time.Unix(c.At, 0),
		TrustedRoots:        map[string][]*trust.AMDRootCerts{c.Line: {root}},
	})
	most := 0
	validated := validate.SnpAttestation(shown, &validate.Options{
		GuestPolicy:               abi.SnpPolicy{SMT: true},
		Measurement:               c.Measurement,
		HostData:                  c.HostData,
		ReportData:                c.ReportData,
		MinimumTCB:                c.MinimumTcb,
		PermitProvisionalFirmware: true,
		VMPL:                      &most,
	})
	return Said{Verify: words(verified), Validate: words(validated)}, nil
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	said := make([]Said, len(cases))
	for i, c := range cases {
		var err error
		if said[i], err = c.try(); err != nil {
			panic(err)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		panic(err)
	}
}
