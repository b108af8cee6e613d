import {AgentError} from '../../errors.ts';
import {askVersion} from '../../proxy/ask-version.ts';
import {checkBinary, checkVersion} from '../../proxy/binary.ts';
import {type Finding, fail, ok, skip, withConfig} from './types.ts';

/** Whether Envoy is there, made for this processor, starts, and is new enough. */
export const envoy = withConfig('Envoy', async ({proxy}): Promise<readonly Finding[]> => {
	if (proxy.mode === 'off') return [skip('proxy.mode is off')];
	if (proxy.mode === 'external') return [skip('another supervisor runs it')];
	try {
		checkBinary(proxy.binaryPath);
		const version = await askVersion(proxy.binaryPath);
		if (version === undefined)
			return [fail(`${proxy.binaryPath} --version says nothing of Envoy`, 'install Envoy there, or set proxy.binary')];
		checkVersion(proxy.binaryPath, version);
		return [ok(`${proxy.binaryPath}, version ${version}`)];
	} catch (error) {
		if (!(error instanceof AgentError)) throw error;
		return [fail(error.message, error.hint ?? 'install Envoy again')];
	}
});
