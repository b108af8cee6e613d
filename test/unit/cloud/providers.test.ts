import test from 'ava';
import {askAt, type CloudFacts, detectCloud, fetchFacts, platformOf} from '../../../src/cloud/index.ts';
import {startMetadataService} from '../../support/metadata-service.ts';

const signal = new AbortController().signal;

const detects = test.macro({
	title: (_, expected: string | undefined, fields: Record<string, string>) =>
		`cloud › firmware that says ${JSON.stringify(fields)}: ${expected ?? 'none'}`,
	exec(t, expected: string | undefined, fields: Record<string, string>) {
		t.is(
			detectCloud(field => fields[field] ?? ''),
			expected as never,
		);
	},
});

test(detects, 'aws', {sys_vendor: 'Amazon EC2', product_name: 't3.micro'});
test(detects, 'aws', {sys_vendor: 'Xen', bios_version: '4.11.amazon'});
test(detects, 'gce', {sys_vendor: 'Google', product_name: 'Google Compute Engine'});
test(detects, 'azure', {sys_vendor: 'Microsoft Corporation', chassis_asset_tag: '7783-7084-3265-9085-8269-3286-77'});
test(detects, undefined, {sys_vendor: 'Microsoft Corporation', product_name: 'Virtual Machine'});
test(detects, undefined, {sys_vendor: 'QEMU'});
test(detects, undefined, {});

const says = test.macro({
	title: (_, cloud: string) => `cloud › ${cloud} says where the machine is, asked as it wants to be`,
	async exec(t, cloud: 'aws' | 'gce' | 'azure', expected: Omit<CloudFacts, 'cloud'>, platform: Record<string, string>) {
		const {endpoint} = await startMetadataService(t, cloud);
		const facts = await fetchFacts(cloud, askAt(endpoint, signal));
		t.deepEqual(facts, {cloud, ...expected});
		t.deepEqual(platformOf(facts), platform);
	},
});

test(
	says,
	'aws',
	{
		...{locality: 'us-east-1/us-east-1a', instanceId: 'i-1234567890abcdef0'},
		...{instanceType: 't2.micro', address: '10.158.112.84'},
	},
	{aws_region: 'us-east-1', aws_availability_zone: 'us-east-1a', aws_instance_id: 'i-1234567890abcdef0'},
);
test(
	says,
	'gce',
	{
		...{locality: 'europe-west4/europe-west4-a', instanceId: '3561235981231234567'},
		...{instanceType: 'n1-standard-1', address: '10.164.0.2'},
	},
	{gcp_location: 'europe-west4-a', gcp_gce_instance_id: '3561235981231234567'},
);
test(
	says,
	'azure',
	{
		...{locality: 'westus/westus-1', instanceId: '02aab8a4-74ef-476e-8182-f6d2ba4166a6'},
		...{instanceType: 'Standard_A3', address: '10.144.133.132'},
	},
	{azure_location: 'westus', azure_vmId: '02aab8a4-74ef-476e-8182-f6d2ba4166a6', azure_vmSize: 'Standard_A3'},
);

test('cloud › on azure without zones the fault domain stands for one, as with its Kubernetes', async t => {
	const service = await startMetadataService(t, 'azure');
	service.zone = '';
	t.is((await fetchFacts('azure', askAt(service.endpoint, signal))).locality, 'westus/36');
});

const refuses = test.macro({
	title: (name = '') => `cloud › not believed: ${name}`,
	async exec(
		t,
		cloud: 'aws' | 'gce' | 'azure',
		code: number,
		body: string,
		headers: Record<string, string>,
		why: RegExp,
	) {
		const service = await startMetadataService(t, cloud);
		service.answer = (_, response) => response.writeHead(code, headers).end(body);
		const error = await t.throwsAsync(fetchFacts(cloud, askAt(service.endpoint, signal)));
		t.regex(error!.message, why);
	},
});

const elsewhere = {location: 'http://192.0.2.1/'};
test('a redirect', refuses, 'aws', 302, '', elsewhere, /PUT http:\S+\/latest\/api\/token: HTTP status 302$/);
test('one that is switched off', refuses, 'aws', 403, '', {}, /HTTP status 403$/);
test('a token that would end the header', refuses, 'aws', 200, 'a\r\nb', {}, /the answer is no token$/);
test('somebody else', refuses, 'gce', 200, 'projects/1/zones/a-b', {}, /is not the metadata service$/);
test('too much', refuses, 'azure', 200, 'x'.repeat(200_000), {}, /larger than 131072 bytes$/);
test('no region', refuses, 'azure', 200, '{}', {}, /names no region$/);
test('a page', refuses, 'azure', 200, '<html>', {}, /JSON/);

test('cloud › what is no name is left out, not passed on', async t => {
	const service = await startMetadataService(t, 'azure');
	service.answer = (_, response) =>
		response.end(
			JSON.stringify({location: 'westus', zone: '1/../2', vmId: 'a b', vmSize: 'x\ny', platformFaultDomain: 7}),
		);
	t.deepEqual(await fetchFacts('azure', askAt(service.endpoint, signal)), {
		...{cloud: 'azure', locality: 'westus', instanceId: '', instanceType: '', address: ''},
	});
});

test('cloud › a service that hangs is given up after a second', async t => {
	const service = await startMetadataService(t, 'aws');
	service.hang(true);
	const error = await t.throwsAsync(fetchFacts('aws', askAt(service.endpoint, signal)));
	t.regex(error!.message, /no answer within 1 s$/);
});
