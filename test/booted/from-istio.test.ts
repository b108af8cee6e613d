// A machine as Istio's own package leaves it: its files at its places, its unit with its own directives, rules as its tool makes
// them. What runs in place of its agent and Envoy only holds their ports.
import test from 'ava';
import {idOf} from '../support/captured-mesh.ts';
import {
	buildPackages,
	install,
	joinMesh,
	makeBootedWorld,
	skippedWithoutMachines,
	untilActive,
	untilAnswered,
	type Vm,
} from './world.ts';

const unit = `[Unit]
Description=istio-sidecar: The Istio sidecar
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/local/bin/istio-start.sh
ExecStartPre=+/usr/bin/install -d -o istio-proxy -m 0755 /var/run/secrets
ExecStopPost=/usr/local/bin/istio-start.sh clean
Restart=always
RestartSec=10
KillMode=mixed
TimeoutStopSec=30s
[Install]
WantedBy=multi-user.target
`;

/** REDIRECT of everything in and out, for the user of the proxy; as istio-iptables has it on a machine. */
const rules = (to: 'nat' | 'clean'): string =>
	to === 'clean'
		? `*nat
-D PREROUTING -p tcp -j ISTIO_INBOUND
-D OUTPUT -j ISTIO_OUTPUT
-F ISTIO_INBOUND
-F ISTIO_OUTPUT
-F ISTIO_REDIRECT
-F ISTIO_IN_REDIRECT
-X ISTIO_INBOUND
-X ISTIO_OUTPUT
-X ISTIO_REDIRECT
-X ISTIO_IN_REDIRECT
COMMIT
`
		: `*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 22 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner istio-proxy -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner istio-proxy -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner istio-proxy -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
`;

const start = `#!/bin/bash
set -e
clean() { iptables-restore --noflush </root/clean.rules 2>/dev/null || true; }
clean
[ "$1" != clean ] || exit 0
iptables-restore --noflush </root/istio.rules
exec setpriv --reuid istio-proxy --regid istio-proxy --init-groups /usr/bin/python3 /root/holder.py
`;

/** Istio's agent and Envoy, as far as ports go. */
const holder = `import select, socket
held = [socket.create_server(('0.0.0.0', port)) for port in (15001, 15006, 15020, 15021, 15090)]
while True:
    for each in select.select(held, [], [])[0]:
        each.accept()[0].close()
`;

async function makeIstioMachine({machine, bundle}: Vm): Promise<void> {
	await machine.copy(bundle, '/root/bundle');
	const files = {
		'/etc/systemd/system/istio.service': unit,
		'/root/istio.rules': rules('nat'),
		'/root/clean.rules': rules('clean'),
		'/usr/local/bin/istio-start.sh': start,
		'/root/holder.py': holder,
	};
	for (const [path, text] of Object.entries(files))
		await machine.must(`base64 -d >${path} <<<${Buffer.from(text).toString('base64')}`);
	await machine.must(
		[
			'set -e; useradd --system --user-group --home-dir /var/lib/istio --no-create-home istio-proxy',
			'mkdir -p /var/lib/istio/envoy /var/lib/istio/config /var/lib/istio/proxy /etc/certs /var/run/secrets/tokens /var/log/istio',
			'ln -s /var/lib/istio /etc/istio; cd /root/bundle',
			'cp cluster.env /var/lib/istio/envoy/; cp mesh.yaml /etc/istio/config/mesh; cp root-cert.pem /etc/certs/',
			'cp istio-token /var/run/secrets/tokens/; cat hosts >>/etc/hosts; cd /; rm -r /root/bundle',
			"printf '# ISTIO_SERVICE=x\\n' >/var/lib/istio/envoy/sidecar.env; touch /var/lib/istio/config/mesh",
			'chown -R istio-proxy /etc/certs /var/run/secrets /var/lib/istio/envoy; chmod 755 /root /usr/local/bin/istio-start.sh; chmod 644 /root/*',
			'systemctl daemon-reload; systemctl enable --now istio',
		].join('\n'),
	);
}

const stateOf = async ({machine}: Vm) => ({
	istio: await machine.show('istio.service', 'ActiveState'),
	isEnabled: (await machine.sh('systemctl is-enabled istio.service')).stdout.trim(),
	rules: (await machine.must('iptables-save -t nat 2>/dev/null | grep ^-A || true')).trim(),
	onramp: await machine.show('onramp-agent.service', 'ActiveState'),
	dropIns: (
		await machine.must(
			'ls /run/systemd/system/istio.service.d /run/systemd/system/onramp-capture.service.d 2>/dev/null || true',
		)
	).match(/\S+\.conf/g),
});

test.serial(
	"from istio › a machine of Istio's is taken over, handed back, and left as it was by what fails",
	async t => {
		if (await skippedWithoutMachines(t)) return;
		const packages = await buildPackages();
		const world = await makeBootedWorld(t);
		const [a, b] = await Promise.all([world.boot('a'), world.boot('b')]);
		for (const vm of [a, b]) await install(vm, packages);
		await joinMesh(b);
		await makeIstioMachine(a);
		const before = await stateOf(a);
		t.like(before, {istio: 'active', isEnabled: 'enabled', onramp: 'inactive', dropIns: null});
		t.regex(before.rules, /ISTIO_OUTPUT/);

		await a.machine.must('install -d -m 0700 /run/onramp-from-istio-99999999-killed');
		const plan = await a.machine.must('onramp join --from-istio --dry-run');
		t.is(
			await a.machine.must('ls /run | grep onramp-from-istio || true'),
			'',
			'no copy of the token stays, nor one of a killed command',
		);
		t.regex(
			plan,
			/istio-token: \/var\/run\/secrets\/tokens\/istio-token[\s\S]*5\. istio.service is disabled[\s\S]*nothing was changed/,
		);
		t.deepEqual(await stateOf(a), before, 'a plan changes nothing');

		const nowhere = await a.machine.sh('onramp join --from-istio --wait 6s --control-plane 127.0.0.1:1');
		t.not(nowhere.code, 0);
		t.regex(nowhere.stdout, /going back to Istio\n[\s\S]*istio.service runs again/);
		t.deepEqual(await stateOf(a), before, 'what fails leaves it as it was');
		await a.machine.must('rm /etc/onramp/join.yaml');

		const said = await a.machine.must('onramp join --from-istio --wait 60s --proxy-termination-drain 2s');
		t.regex(said, /istio.service: stopped[\s\S]*ready: spiffe:[\s\S]*istio.service: disabled/);
		await untilActive(a, 'onramp-ready.target');
		t.like(await stateOf(a), {istio: 'inactive', isEnabled: 'disabled', rules: '', onramp: 'active', dropIns: null});
		t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
		t.like(await untilAnswered(b, 'a'), {app: 'a', caller: idOf('b')});
		await a.machine.reboot();
		await untilActive(a, 'onramp-ready.target');
		t.is(await a.machine.show('istio.service', 'ActiveState'), 'inactive', 'also after a reboot');
		t.like(await untilAnswered(b, 'a'), {app: 'a', caller: idOf('b')});

		// What Istio's agent keeps beside its roots, once it has been given a certificate; its token is gone with the boot.
		await a.machine.must(
			'cat /var/lib/onramp/identity/current/cert-chain.pem /etc/certs/root-cert.pem >/etc/certs/cert-chain.pem && cp -L /var/lib/onramp/identity/current/key.pem /etc/certs/',
		);
		await a.machine.must('onramp leave --to-istio');
		const back = await stateOf(a);
		t.deepEqual({...back, dropIns: null}, before, 'handed back');
		t.is((await a.machine.must('nft list tables | grep onramp || true')).trim(), '');

		await a.machine.must(
			'rm -r /var/lib/onramp/identity /etc/onramp/bundle; rm -f /var/run/secrets/tokens/istio-token',
		);
		const again = await a.machine.must('onramp join --from-istio --wait 60s');
		t.regex(again, /certificate: \/etc\/certs, valid, taken over/);
		t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
	},
);
