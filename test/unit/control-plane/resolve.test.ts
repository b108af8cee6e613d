import test from 'ava';
import {formatEndpoint, resolveEndpoint} from '../../../src/control-plane/resolve.ts';
import {serverNameOf} from '../../../src/control-plane/tls.ts';
import {AgentError} from '../../../src/errors.ts';
import {at} from './world.ts';

const nobody = () => Promise.reject(new Error('must not be asked'));

test('resolve › an address is itself, and nobody is asked', async t => {
	t.deepEqual(await resolveEndpoint(at(1, '10.0.0.1'), {'10.0.0.1': ['1.1.1.1']}, nobody), ['10.0.0.1']);
	t.deepEqual(await resolveEndpoint(at(1, 'fd00::1'), {}, nobody), ['fd00::1']);
});

test("resolve › the bundle's hosts come before the system, whatever the case of the name", async t => {
	const hosts = {'istiod.istio-system.svc': ['203.0.113.10', '203.0.113.11']};
	t.deepEqual(await resolveEndpoint(at(1, 'Istiod.Istio-System.svc'), hosts, nobody), hosts['istiod.istio-system.svc']);
});

test('resolve › a name that hosts has without addresses, or not at all, is asked of the system', async t => {
	const asked: string[] = [];
	const lookup = async (host: string) => {
		asked.push(host);
		return ['192.0.2.1', '2001:db8::1'];
	};
	t.deepEqual(await resolveEndpoint(at(1, 'a.example'), {'a.example': []}, lookup), ['192.0.2.1', '2001:db8::1']);
	t.deepEqual(await resolveEndpoint(at(1, 'b.example'), {}, lookup), ['192.0.2.1', '2001:db8::1']);
	t.deepEqual(asked, ['a.example', 'b.example']);
});

for (const [what, lookup] of [
	['fails', () => Promise.reject(Object.assign(new Error('getaddrinfo ENOTFOUND'), {code: 'ENOTFOUND'}))],
	['finds nothing', async () => []],
] as const) {
	test(`resolve › a look-up that ${what} names the line for the bundle's hosts`, async t => {
		const resolving = resolveEndpoint(at(15012, 'istiod.istio-system.svc'), {}, lookup);
		const error = await t.throwsAsync(resolving, {instanceOf: AgentError});
		t.is(error!.code, 'control_plane.unreachable');
		t.is(error!.message, 'look up control plane istiod.istio-system.svc:15012: no address found');
		t.regex(error!.hint!, /add "ADDRESS istiod\.istio-system\.svc" to the bundle's hosts file/);
	});
}

test('resolve › an IPv6 address stands in brackets before a port', t => {
	t.is(formatEndpoint(at(1, 'fd00::1')), '[fd00::1]:1');
	t.is(formatEndpoint(at(1, '10.0.0.1')), '10.0.0.1:1');
	t.is(formatEndpoint(at(1, 'istiod')), 'istiod:1');
});

for (const [host, configured, expected] of [
	['istiod.istio-system.svc', undefined, 'istiod.istio-system.svc'],
	['istiod-canary.istio-system.svc', undefined, 'istiod-canary.istio-system.svc'],
	['203.0.113.10', undefined, 'istiod.istio-system.svc'],
	['fd00::1', undefined, 'istiod.istio-system.svc'],
	['localhost', undefined, 'istiod.istio-system.svc'],
	['203.0.113.10', 'gateway.example', 'gateway.example'],
	['istiod.istio-system.svc', 'gateway.example', 'gateway.example'],
] as const) {
	test(`server name › of ${host}${configured ? ` with ${configured} configured` : ''} is ${expected}`, t => {
		t.is(serverNameOf({...at(1, host)}, configured), expected);
	});
}
