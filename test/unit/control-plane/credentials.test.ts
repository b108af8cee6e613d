import {generateKeyPairSync, type KeyObject} from 'node:crypto';
import {once} from 'node:events';
import {createSecureServer, createServer, type Http2Server} from 'node:http2';
import type {AddressInfo, Socket} from 'node:net';
import type {TLSSocket} from 'node:tls';
import test, {type ExecutionContext} from 'ava';
import type {ClientCertificate} from '../../../src/control-plane/tls.ts';
import {AgentError} from '../../../src/errors.ts';
import {FakeClock} from '../../support/fake-clock.ts';
import {createCa, renderToken, secretOf, type TestCa} from '../identity/test-ca.ts';
import {at, makeControlPlane, type Setting} from './world.ts';

const now = '2030-01-01T00:00:00Z';
const inAnHour = Date.parse('2030-01-01T01:00:00Z') / 1000;
const good = renderToken({aud: ['istio-ca'], sub: 'system:serviceaccount:bar:vm', exp: inAnHour});
const request = {csrPem: 'CSR', lifetimeMs: 1000, certSigner: '', auth: 'any'} as const;

interface Seen {
	readonly authorization: string | undefined;
	readonly certificate: string | undefined;
	readonly headers: Readonly<Record<string, unknown>>;
}

/** A control plane that notes who calls and refuses all with a code that says nothing about credentials. */
async function startListener(t: ExecutionContext, ca: TestCa | undefined) {
	const seen: Seen[] = [];
	const server: Http2Server = ca
		? (createSecureServer({
				...(await ca.serve(['istiod.istio-system.svc'])),
				ca: ca.pem,
				requestCert: true,
				rejectUnauthorized: false,
			}) as unknown as Http2Server)
		: createServer();
	server.on('stream', (stream, headers) => {
		const socket = stream.session!.socket as TLSSocket;
		const peer = ca ? socket.getPeerX509Certificate() : undefined;
		seen.push({authorization: headers.authorization, certificate: peer?.subjectAltName, headers});
		stream.on('error', () => {});
		stream.respond({':status': 200, 'content-type': 'application/grpc', 'grpc-status': '8'}, {endStream: true});
	});
	const sockets = new Set<Socket>();
	server.on('connection', (socket: Socket) => sockets.add(socket));
	server.listen(0, '127.0.0.1');
	await once(server, 'listening');
	t.teardown(() => {
		server.close();
		for (const socket of sockets) socket.destroy();
	});
	return {port: (server.address() as AddressInfo).port, seen};
}

const spiffeId = 'spiffe://cluster.local/ns/bar/sa/vm';

async function hold(ca: TestCa, change: Partial<ClientCertificate> = {}): Promise<ClientCertificate> {
	const {privateKey}: {privateKey: KeyObject} = generateKeyPairSync('ec', {namedCurve: 'P-256'});
	return {
		chainPem: await ca.issue(privateKey, [spiffeId]),
		keyPem: secretOf(privateKey),
		notAfter: new Date('2045-01-01T00:00:00Z'),
		spiffeId,
		...change,
	};
}

interface Case {
	readonly token?: string;
	readonly held?: Partial<ClientCertificate>;
	readonly auth?: 'any' | 'certificate-only';
	readonly isPlaintext?: boolean;
	readonly config?: Setting['config'];
}

/** What came over the wire, or the failure before anything was sent. */
async function call(t: ExecutionContext, {token, held, auth = 'any', isPlaintext = false, config}: Case) {
	const ca = await createCa();
	const {port, seen} = await startListener(t, isPlaintext ? undefined : ca);
	const certificate = held && (await hold(ca, held));
	const controlPlane = await makeControlPlane(t, {
		endpoints: [{...at(port), isPlaintext}],
		rootPem: ca.pem,
		...(token === undefined ? {} : {token}),
		...(config ? {config} : {}),
		deps: {clock: new FakeClock(now), clientCertificate: () => certificate},
	});
	const calling = controlPlane.requestCertificate({...request, auth}, new AbortController().signal);
	const error = (await t.throwsAsync(calling, {instanceOf: AgentError}))!;
	return {error, seen};
}

const shown = `URI:${spiffeId}`;

for (const [title, input, authorization, certificate] of [
	['a good token alone is sent', {token: good}, `Bearer ${good}`, undefined],
	[
		'certificate and token are both sent: istiod takes the first that it likes',
		{token: good, held: {}},
		`Bearer ${good}`,
		shown,
	],
	['without a token the certificate is enough', {held: {}}, undefined, shown],
	['an expired token is not sent', {token: renderToken({aud: ['istio-ca'], exp: 1}), held: {}}, undefined, shown],
	[
		'a trial by certificate alone leaves the token at home',
		{token: good, held: {}, auth: 'certificate-only'},
		undefined,
		shown,
	],
	[
		'an expired certificate is not shown, since istiod would end the handshake',
		{token: good, held: {notAfter: new Date('2029-01-01')}},
		`Bearer ${good}`,
		undefined,
	],
	[
		'a certificate of another workload is not shown',
		{token: good, held: {spiffeId: 'spiffe://cluster.local/ns/foo/sa/vm'}},
		`Bearer ${good}`,
		undefined,
	],
	[
		'a token for another audience is sent, as istiod may accept it',
		{token: renderToken({aud: ['other'], exp: inAnHour})},
		/^Bearer /,
		undefined,
	],
	['over plaintext the token is not sent', {token: good, isPlaintext: true}, undefined, undefined],
] as const satisfies readonly (readonly [string, Case, string | RegExp | undefined, string | undefined])[]) {
	test(`credentials › ${title}`, async t => {
		const {error, seen} = await call(t, input);
		t.is(error.code, 'control_plane.overloaded', error.message);
		t.is(seen.length, 1);
		if (authorization instanceof RegExp) t.regex(seen[0]!.authorization!, authorization);
		else t.is(seen[0]!.authorization, authorization);
		t.is(seen[0]!.certificate, certificate);
	});
}

for (const [title, token, code] of [
	['no token', undefined, 'identity.token_missing'],
	['an empty token', '\n', 'identity.token_empty'],
	['an expired token', renderToken({aud: ['istio-ca'], exp: 1}), 'identity.token_expired'],
	['something else in the place of the token', 'password\r\nx-injected: 1', 'identity.token_malformed'],
] as const) {
	test(`credentials › with ${title} and no certificate nothing is sent, and the reason is the token's`, async t => {
		const {error, seen} = await call(t, token === undefined ? {} : {token});
		t.is(error.code, code);
		t.regex(error.message, /^there is no certificate to show the control plane, and read token /);
		t.truthy(error.hint);
		t.deepEqual(seen, []);
	});
}

test('credentials › headers name the cluster and those configured, and a token is in no message', async t => {
	const {error, seen} = await call(t, {token: good, config: {caHeaders: {'x-mine': 'yes'}}});
	t.like(seen[0]!.headers, {clusterid: 'Kubernetes', 'x-mine': 'yes'});
	t.false(JSON.stringify([error.message, error.hint, error.fields]).includes(good.slice(-20)));
});
