import {generateKeyPairSync} from 'node:crypto';
import {once} from 'node:events';
import {createServer as createHttpServer} from 'node:http';
import {createSecureServer} from 'node:http2';
import {type AddressInfo, createServer, type Server, type Socket} from 'node:net';
import {createServer as createTlsServer} from 'node:tls';
import test, {type ExecutionContext} from 'ava';
import type {ClientCertificate} from '../../../src/control-plane/tls.ts';
import {AgentError} from '../../../src/errors.ts';
import {until} from '../../support/fake-ads.ts';
import {createCa, renderToken, secretOf, type TestCa} from '../identity/test-ca.ts';
import {at, makeControlPlane, type Setting} from './world.ts';

const serverName = 'istiod.istio-system.svc';
const request = {csrPem: '', lifetimeMs: 0, certSigner: '', auth: 'any'} as const;
const token = renderToken({aud: ['istio-ca'], sub: 'system:serviceaccount:bar:vm', exp: 4_000_000_000});

/** What is open at a server now. */
const connectionsTo = new WeakMap<Server, Set<Socket>>();

/** Of a server that is to be there for this test. */
async function listen(t: ExecutionContext, server: Server): Promise<number> {
	const sockets = new Set<Socket>();
	server.on('connection', (socket: Socket) => {
		sockets.add(socket);
		socket.on('error', () => {}); // The client's business.
		socket.once('close', () => sockets.delete(socket));
	});
	connectionsTo.set(server, sockets);
	server.on('tlsClientError', () => {});
	server.listen(0, '127.0.0.1');
	await once(server, 'listening');
	t.teardown(() => {
		server.close();
		for (const socket of sockets) socket.destroy();
	});
	return (server.address() as AddressInfo).port;
}

async function holdCertificate(ca: TestCa): Promise<ClientCertificate> {
	const {privateKey} = generateKeyPairSync('ec', {namedCurve: 'P-256'});
	const spiffeId = 'spiffe://cluster.local/ns/bar/sa/vm';
	return {
		chainPem: await ca.issue(privateKey, [spiffeId]),
		keyPem: secretOf(privateKey),
		notAfter: new Date('2045-01-01T00:00:00Z'),
		spiffeId,
	};
}

async function fail(t: ExecutionContext, port: number, rootPem: string, setting: Partial<Setting> = {}) {
	const controlPlane = await makeControlPlane(t, {endpoints: [at(port)], rootPem, token, ...setting});
	const attempt = () =>
		t.throwsAsync(controlPlane.requestCertificate(request, new AbortController().signal), {instanceOf: AgentError});
	return {error: (await attempt())!, attempt};
}

interface Case {
	readonly title: string;
	readonly server: (ca: TestCa, other: TestCa) => Promise<Server>;
	readonly code: AgentError['code'];
	/** Behind `connect to 127.0.0.1:PORT: `. */
	readonly message: RegExp;
	readonly hint: RegExp;
}

const h2 = (material: object) => createSecureServer(material) as unknown as Server;

const cases: readonly Case[] = [
	{
		title: 'has a certificate for another name',
		server: async ca => h2(await ca.serve(['other.example'])),
		code: 'control_plane.untrusted',
		message: /^its certificate is not for "istiod\.istio-system\.svc" \(Hostname\/IP .* DNS:other\.example\)$/,
		hint: /control-plane\.server-name/,
	},
	{
		title: 'has a certificate of another root',
		server: async (_, other) => h2(await other.serve([serverName])),
		code: 'control_plane.untrusted',
		message: /^its certificate is not signed by any root in \S+roots\.pem \(unable to verify the first certificate\)$/,
		hint: /istio-ca-root-cert/,
	},
	{
		title: 'has an expired certificate',
		server: async ca =>
			h2(await ca.serve([serverName], {notBefore: new Date('2020-01-01'), notAfter: new Date('2021-01-01')})),
		code: 'control_plane.untrusted',
		message: /^its certificate is not valid by this machine's clock \(certificate has expired\)$/,
		hint: /timedatectl/,
	},
	{
		title: 'has a certificate that is not valid yet',
		server: async ca =>
			h2(await ca.serve([serverName], {notBefore: new Date('2099-01-01'), notAfter: new Date('2100-01-01')})),
		code: 'control_plane.untrusted',
		message: /^its certificate is not valid by this machine's clock \(certificate is not yet valid\)$/,
		hint: /timedatectl/,
	},
	{
		title: 'wants a client certificate of one that has none',
		server: async ca =>
			h2({...(await ca.serve([serverName])), ca: ca.pem, requestCert: true, rejectUnauthorized: true}),
		code: 'control_plane.unauthenticated',
		message: /^it takes nobody without a client certificate \(token for .*; no certificate\)$/,
		hint: /gateway/,
	},
	{
		title: 'takes the connection and says nothing',
		server: async () => createServer(socket => socket.resume()),
		code: 'control_plane.unreachable',
		message: /^no connection after 0\.3 s$/,
		hint: /can be reached from here/,
	},
	{
		title: 'speaks TLS and then says nothing',
		server: async ca =>
			createTlsServer({...(await ca.serve([serverName])), ALPNProtocols: ['h2']}, socket => socket.resume()) as Server,
		code: 'control_plane.unreachable',
		message: /^no connection after 0\.3 s$/,
		hint: /can be reached from here/,
	},
	{
		title: 'ends the connection at once',
		server: async () => createServer(socket => socket.destroy()),
		code: 'control_plane.unreachable',
		message: /disconnected before secure TLS connection was established|ECONNRESET/,
		hint: /can be reached from here/,
	},
	{
		title: 'speaks HTTP without TLS',
		server: async () => createHttpServer((_, response) => response.end('hello')) as Server,
		code: 'control_plane.unreachable',
		message: /^what answers there does not speak TLS \([\w ]+\)$/,
		hint: /15012/,
	},
	{
		title: 'speaks something else with TLS',
		server: async ca =>
			createTlsServer({...(await ca.serve([serverName])), ALPNProtocols: ['http/1.1']}, () => {}) as Server,
		code: 'control_plane.unreachable',
		message: /^what answers there does not speak gRPC \([\w ]*no application protocol\)$/,
		hint: /15012/,
	},
];

for (const {title, server, code, message, hint} of cases) {
	test(`connect › a control plane that ${title}: ${code}`, async t => {
		const [ca, other] = [await createCa(), await createCa()];
		const listener = await server(ca, other);
		const port = await listen(t, listener);
		// Only who says nothing has to be waited out; the others answer, however busy this machine is.
		const connectTimeoutMs = title.endsWith('nothing') ? 300 : 20_000;
		const {error} = await fail(t, port, ca.pem, {config: {connectTimeoutMs}});
		const start = `connect to 127.0.0.1:${port}: `;
		t.is(error.message.slice(0, start.length), start);
		t.regex(error.message.slice(start.length), message);
		t.notRegex(error.message, /\n/);
		t.is(error.code, code);
		t.regex(error.hint!, hint);
		// Nor would it come to an end by itself: the other side may hang for hours.
		await until('no connection left behind', () => connectionsTo.get(listener)!.size === 0);
	});
}

test('connect › an address where nobody listens is unreachable', async t => {
	const ca = await createCa();
	const server = createServer();
	const port = await listen(t, server);
	await new Promise(resolve => server.close(resolve));
	const {error} = await fail(t, port, ca.pem);
	t.is(error.code, 'control_plane.unreachable');
	t.is(error.message, `connect to 127.0.0.1:${port}: connect ECONNREFUSED 127.0.0.1:${port}`);
});

test('connect › a failure that lasts has the same words each time, so that it is told once', async t => {
	const ca = await createCa();
	const port = await listen(
		t,
		createServer(socket => socket.destroy()),
	);
	const {error, attempt} = await fail(t, port, ca.pem);
	t.is((await attempt())!.message, error.message);
});

for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
	test(`connect › after a refusal of our certificate over ${version} the token is relied on, and then the certificate again`, async t => {
		const [ca, other] = [await createCa(), await createCa()];
		// As istiod's: a certificate that cannot be verified ends the handshake, none is no harm.
		const seen: boolean[] = [];
		const material = {...(await ca.serve([serverName])), ca: ca.pem, minVersion: version, maxVersion: version};
		const server = createSecureServer({...material, requestCert: true, rejectUnauthorized: false});
		server.on('secureConnection', socket => {
			const hasCertificate = socket.getPeerX509Certificate() !== undefined;
			seen.push(hasCertificate);
			if (hasCertificate && !socket.authorized) socket.destroy();
		});
		server.on('stream', stream => {
			stream.on('error', () => {});
			stream.respond(
				{':status': 200, 'content-type': 'application/grpc', 'grpc-status': '14', 'grpc-message': 'not ready'},
				{endStream: true},
			);
		});
		const port = await listen(t, server as unknown as Server);
		const held = await holdCertificate(other);
		const {error, attempt} = await fail(t, port, ca.pem, {deps: {clientCertificate: () => held}});
		t.is(error.code, 'control_plane.unreachable', error.message);
		t.is((await attempt())!.code, 'control_plane.not_ready');
		await attempt();
		// gRPC tries again by itself where an attempt takes a second.
		const changes = seen.filter((has, i) => has !== seen[i - 1]);
		t.deepEqual(changes, [true, false, true]);
	});
}

test('connect › of several control planes the first that answers is used, and the first failure is told', async t => {
	const ca = await createCa();
	const dead = createServer();
	const deadPort = await listen(t, dead);
	await new Promise(resolve => dead.close(resolve));
	const wrong = await listen(t, h2(await ca.serve(['other.example'])));
	const {error} = await fail(t, deadPort, ca.pem, {endpoints: [at(deadPort), at(wrong)]});
	t.regex(error.message, new RegExp(`^connect to 127\\.0\\.0\\.1:${deadPort}: connect ECONNREFUSED`));
});

test('connect › roots learned from the control plane count beside those of the file', async t => {
	const [ca, newCa] = [await createCa(), await createCa()];
	const server = createSecureServer(await newCa.serve([serverName]));
	server.on('stream', stream => {
		stream.respond({':status': 200, 'content-type': 'application/grpc', 'grpc-status': '8'}, {endStream: true});
	});
	const port = await listen(t, server as unknown as Server);
	const {error} = await fail(t, port, ca.pem, {deps: {learnedRoots: () => newCa.pem}});
	t.is(error.code, 'control_plane.overloaded', error.message);
});
